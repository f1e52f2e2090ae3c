"""Names and digests of the files that a verdict is about, so that others can tell whether they hold the same ones.

These are the weight files that are read, the configuration beside them that says how, and a whole model's noise schedule. Where
nothing could be judged, every file of the folder is named; of a repository of which nothing was downloaded, what its commit says.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..denoiser.setup import denoiser_of
from ..errors import AttestationError, ConfigError, NotTestableError, SeveralSuspectsError
from ..formats.artifact import Artifact
from ..formats.bystanders import names_below
from ..hub.download import SCHEDULE
from ..hub.remote import look_up
from ..protocol.attestation import MAX_SUBJECTS, Subject
from .suspect import judge_source


@dataclass(frozen=True)
class SuspectFiles:
    """The files of a suspect.

    Args:
        subject (`tuple[Subject, ...]`): name and digest of each, by name.
        origin (`dict`, *optional*): `repo` and `commit`, where it came from a Hub.
    """

    subject: tuple[Subject, ...]
    origin: dict[str, str] | None = None


def name_files(suspect: str | Path, weight_name: str | None = None, revision: str | None = None) -> SuspectFiles:
    """The files of a folder, file or Hub repository that `verify` reads under the same arguments.

    Raises:
        ConfigError: a model in memory, which has no files. SuspectError, HubError, UnsafeFileError: as `verify`.
    Source: our choice.
    """
    if not isinstance(suspect, str | Path) or denoiser_of(suspect) is not None:
        raise ConfigError(
            f"evidence names the suspect's files, and a {type(suspect).__name__} in memory has none: save it, and verify the folder."
        )
    try:
        found, root, told = judge_source(suspect, weight_name, revision)
    except (NotTestableError, SeveralSuspectsError):
        return _name_unjudged(suspect, weight_name, revision)
    paths = _files_of(found, root)
    subject = _hash(root, paths) if paths else _hash_all(root)
    return SuspectFiles(subject, {name: told[name] for name in ("repo", "commit")} if told else None)


def differences(stated: Iterable[Subject], found: Iterable[Subject]) -> list[str]:
    """What differs between two lists of files, a line each; a file may have another name, as long as its content is the same."""
    left, right = ({one.digest: one for one in listed} for listed in (stated, found))
    lines = [
        f"{one.name} ({one.algorithm} {digest}) is not there" for digest, one in left.items() if digest not in right
    ]
    return [*lines, *(f"{one.name} ({digest}) is not stated" for digest, one in right.items() if digest not in left)]


def _files_of(found: Artifact, root: Path) -> list[Path]:
    """Weight files, beside each the configuration that its loader takes, and a whole model's noise schedule, which is read with."""
    beside = ["config.json"] if found.config is not None else []
    beside += ["adapter_config.json"] if found.kind == "lora" else []
    folders = sorted({file.parent for file in found.files})
    paths = [*found.files, *(folder / name for folder in folders for name in beside)]
    if len(found.files) > 1 and found.config is not None:
        paths += [path for folder in folders for path in folder.glob("*.safetensors.index.json")]
    if paths and found.kind != "lora":
        paths.append(root / SCHEDULE)
    return [path for path in paths if path.is_file()]


def _hash_all(root: Path) -> tuple[Subject, ...]:
    if root.is_file():
        return _hash(root, [root])
    return _hash(root, [path for name in names_below(root) if (path := root / name).is_file()])


def _hash(root: Path, paths: Iterable[Path]) -> tuple[Subject, ...]:
    found = {}
    for path in paths:
        near = root if path.is_relative_to(root) else root.resolve()
        name = path.name if root.is_file() else path.relative_to(near).as_posix()
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    if not 0 < len(found) <= MAX_SUBJECTS:
        raise AttestationError(
            f"'{root}' has {len(found)} files that could be meant, 1 to {MAX_SUBJECTS} can be named: name one with weight_name=."
        )
    return tuple(Subject(name, digest) for name, digest in sorted(found.items()))


def _name_unjudged(suspect: str | Path, weight_name: str | None, revision: str | None) -> SuspectFiles:
    """Of a suspect that could not be opened."""
    path = Path(suspect)
    if path.exists():
        return SuspectFiles(_hash(path, [path / weight_name]) if weight_name is not None else _hash_all(path))
    remote = look_up(str(suspect), revision)
    large = {
        name: file.sha256
        for name, file in sorted(remote.files.items())
        if file.sha256 is not None and weight_name in (None, name)
    }
    subject = [Subject(name, sha256) for name, sha256 in large.items()][:MAX_SUBJECTS]
    # A commit is the hash of everything in it, small files too.
    subject = subject or [Subject(remote.repo_id, remote.commit, "gitCommit")]
    return SuspectFiles(tuple(subject), {"repo": remote.repo_id, "commit": remote.commit})
