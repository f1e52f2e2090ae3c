"""A suite at work: where it reads and writes, and whether what it names is there and fits."""

import dataclasses
import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...denoiser.hashes import weights_sha256
from ...denoiser.inputs import LatentData
from ...denoiser.price import predictions
from ...denoiser.setup import denoiser_of
from ...errors import AIAOError, DataError
from ..context import AttackContext, base_of, find, open_data, open_pipe, source_of
from .definition import Cell, Suite, digest
from .quality import open_clip


@dataclass(frozen=True)
class Run:
    """A suite at work: where it reads and writes, and what its files held when it began.

    `prints`: a hash of every file or folder that the suite names. It is part of every identity, so that a run on models or
    data that changed under the same name measures anew.
    """

    suite: Suite
    places: tuple[Path, ...]
    folder: Path
    prints: dict[str, str]

    def identity(self, cell: Cell) -> str:
        """What a finished cell is known by."""
        return digest([self.suite.identity(cell), self.prints])

    def reference_identity(self, cell: Cell) -> str:
        """The same for the base's own row."""
        spec, quality = self.suite.models[cell.model], self.suite.quality.known_by
        data = self.suite.data[cell.data]
        return digest(["reference", dataclasses.asdict(spec), quality, data, cell.seed, self.prints])

    def mark_folder(self, cell: Cell) -> Path:
        """Where a marked model is kept."""
        return self.folder / "marks" / digest([self.suite.mark_identity(cell), self.prints])

    def context(self, cell: Cell, seed: int) -> AttackContext:
        """Model and data of a cell."""
        spec, value = self.suite.models[cell.model], self.suite.data[cell.data]
        owner, data = (cached_data(spec.path, what, self.places) for what in (spec.data, value))
        shared = self.folder / "shared" / digest([dataclasses.asdict(spec), value, self.prints])
        return AttackContext(cached_pipe(spec.path, self.places), owner, data, seed, shared, self.places)


def open_run(suite: Suite, config: str | Path, folder: Path, assets: str | Path) -> Run:
    """A suite ready to run in `folder`, its models and data opened and checked.

    Args:
        suite: of `config`, whose own folder is where its relative paths are looked for first, then in `assets`.
    Raises:
        DataError: a model or a data set is missing, or they do not fit.
    """
    places = (Path(config).parent.absolute(), Path(assets).absolute())
    return Run(suite, places, folder.absolute(), fingerprints(suite, places))


def fingerprints(suite: Suite, places: tuple[Path, ...]) -> dict[str, str]:
    """Open every model and data set, also what quality needs, so that a missing folder is found now and not after hours.

    Returns:
        `Run.prints`.
    """
    for spec in suite.models.values():
        for value in (spec.data, *suite.data.values()):
            _check_fit(cached_pipe(spec.path, places), cached_data(spec.path, value, places), spec.path, value)
    named = [spec.path for spec in suite.models.values()]
    for value in (*(spec.data for spec in suite.models.values()), *suite.data.values()):
        named.append(value if isinstance(value, str) else value["folder"])
    for mark in suite.marks.values():
        named += getattr(mark.build(), "sources", ())
    found = {}
    if suite.quality.images:
        # Not among the others: it need not lie on this disk, and it is no denoiser.
        open_clip(suite.quality.clip, places)
        source = source_of(suite.quality.clip, places)
        found[suite.quality.clip] = _fingerprint(Path(source)) if Path(source).is_dir() else source
        named += [suite.quality.prompts] if suite.quality.prompts else []
    for name in sorted(set(named)):
        try:
            found[name] = _fingerprint(find(name, places))
        except DataError:
            if name not in {spec.path for spec in suite.models.values()}:
                raise
            module = denoiser_of(cached_pipe(name, places))  # a repository on the Hub
            found[name] = weights_sha256(module) if module is not None else name
    return found


def _check_fit(pipe: Any, data: LatentData, model: str, value: Any) -> None:
    """Run the denoiser once on these latents, for those of another model fail only after marks were made."""
    denoiser = base_of(pipe)
    try:
        predictions(denoiser, data, pipe.scheduler, samples=1)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, AIAOError):
            raise
        raise DataError(f"the data {value!r} do not fit '{model}' ({error}): encode them with that model.") from error


def _fingerprint(path: Path) -> str:
    """SHA-256 over the names and contents of a file, or of all files of a folder."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        with open(file, "rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        total.update(f"{file.relative_to(path).as_posix()} {content}\n".encode())
    return total.hexdigest()


@lru_cache(maxsize=2)
def cached_pipe(path: str, places: tuple[Path, ...]) -> Any:
    """A pipeline; the last two are kept."""
    return open_pipe(path, places)


_DATA: dict[str, LatentData] = {}


def cached_data(path: str, value: Any, places: tuple[Path, ...]) -> LatentData:
    """Latents for one model; kept, for encoding a folder takes long."""
    key = digest([path, value, *map(str, places)])
    if key not in _DATA:
        _DATA[key] = open_data(cached_pipe(path, places), value, places)
    return _DATA[key]
