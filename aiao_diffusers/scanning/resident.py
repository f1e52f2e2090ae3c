"""What can be said of a suspect without a forward: does it fit the base, is it a copy, how far from the base is it?

And the one place where a suspect goes onto the base: a LoRA is added to the resident denoiser, a full checkpoint's
tensors stand in for the base's, and afterwards the base's own tensors are back.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..denoiser.hashes import weights_sha256
from ..errors import NotTestableError
from ..files.strict_json import read_json
from ..files.text import short
from ..formats.architecture import blank_like
from ..formats.artifact import Artifact
from ..formats.bystanders import PEFT_FILE
from ..formats.checkpoint import load_denoiser, read_weights
from ..formats.detect import detect, detect_denoiser
from ..formats.fit import Shapes, bare_names, fit_original, fit_weights, folder_names, original_shapes, weight_names
from ..formats.lora import apply_lora, check_adapter_fits
from ..formats.model_folder import class_of
from ..hub.candidates import Candidate
from ..hub.remote import Remote
from ..mark.carried import public_config
from ..verification.suspect import Suspect


class Resident:
    """The base's denoiser, loaded once, and what comparisons with it need.

    Attributes:
        denoiser: in float32, eval mode. blank: the same architecture without memory. label: repository and commit.
        shapes: of its state by name. norm: Euclidean norm of its floating-point state. sha256: `weights_sha256`.
    """

    def __init__(self, denoiser: nn.Module, label: str) -> None:
        self.denoiser, self.label = denoiser, label
        shaped: Any = denoiser  # ModelMixin's config methods are untyped
        with torch.device("meta"):
            self.blank: nn.Module = type(shaped).from_config(shaped.config)
        self.config = public_config(denoiser)
        state = denoiser.state_dict()
        self.shapes = {name: tuple(value.shape) for name, value in state.items()}
        self.bytes = sum(4 * value.numel() for value in state.values())
        self.norm = math.sqrt(sum(float(v.double().square().sum()) for v in state.values() if v.is_floating_point()))
        self.sha256 = weights_sha256(denoiser)


@dataclass(frozen=True)
class PlacedSuspect:
    """A suspect on the resident denoiser, ready for `verify`.

    Args:
        digest: of the suspect's own tensors (of an adapter with its config): equal digests read equal.
        distance: norm of the change of all weights over the norm of the base's.
    """

    opened: Suspect
    digest: str
    distance: float


def file_key(remote: Remote, candidate: Candidate) -> tuple[str, ...]:
    """The Hub's hashes of a candidate's files; equal keys mean equal bytes, read alike. Empty where the Hub names none."""
    files = [remote.files[name] for name in (*candidate.weights, *candidate.others)]
    keys = tuple(sorted(file.sha256 or file.git_sha1 or "" for file in files))
    return (*keys, *_read_as(candidate.path)) if all(keys) else ()


def _read_as(path: str | Path) -> tuple[str, ...]:
    """peft's own name for an adapter, under which a file is read by the config beside it."""
    name = Path(path).name
    return (name,) if name == PEFT_FILE else ()


def check_fits(candidate: Candidate, base: Resident, size: int | None = None) -> None:
    """Names and shapes of a header against the base's, before a weight is downloaded.

    Args:
        size: bytes of the files; default: by the headers read. GGUF has none yet: it is downloaded and then judged.
    Raises:
        WrongBaseError: another architecture. LoraNotLoadedError: no tensor finds a module. SuspectError: incomplete
        factors. NotTestableError: packed numbers, or more bytes than any change of this base could need.
    """
    what, found = f"{short(candidate.path or candidate.weights[0])} of another architecture", candidate.artifact
    # Three times float32 leaves room for float64; an original-layout file also holds a VAE and text encoders.
    size = found.file_bytes if size is None else size
    if size > 3 * base.bytes + (2**35 if candidate.kind == "single_file" else 2**25):
        raise NotTestableError(
            f"{short(candidate.path)} has {size / 1e9:.1f} GB, {size / base.bytes:.0f} times the base: not downloaded."
        )
    if candidate.kind == "lora":
        check_adapter_fits(found.shapes, base.blank, what)
    elif candidate.kind == "single_file":
        for header in found.headers:
            expected = _widen(base, original_shapes(header)) or base.shapes
            fit_original(header, expected, what, type(base.denoiser).__name__)
    else:
        _fit_names(found, base, what)


def _fit_names(found: Artifact, base: Resident, what: str) -> tuple[dict[str, str], bool]:
    """Key in the files -> name in the model, of a file or folder in diffusers keys, and whether that widens the base."""
    if found.config is not None:
        names = folder_names(found)
    elif found.path in found.files:
        names = bare_names(found.headers[0], base.shapes)
    else:  # a folder whose config is still on the Hub
        names = weight_names(found.headers)
    shapes = found.shapes
    wide = _widen(base, {name: shapes[key] for key, name in names.items()})
    return fit_weights(found.headers, names, wide or base.shapes, what), wide is not None


def _widen(base: Resident, shapes: Shapes) -> dict[str, tuple[int, ...]] | None:
    """Shapes of the architecture that a file's tensors (`shapes`) widen the base to, as `verify` reads it; else None."""
    blank = blank_like(base.blank, shapes, to_be_filled=False)  # in a thread of its own
    return None if blank is None else {name: tuple(value.shape) for name, value in blank.state_dict().items()}


@contextmanager
def place_on_base(candidate: Candidate, root: Path, label: str, base: Resident) -> Iterator[PlacedSuspect]:
    """The suspect on the resident denoiser for the length of the block; peak memory is the suspect's own tensors.

    Args:
        root: folder of the repository's downloaded files. label: the suspect's name in a report.
    Raises:
        NotTestableError, SuspectError, UnsafeFileError: as `apply_lora` and `load_denoiser`.
    """
    path = root / candidate.path
    if candidate.kind == "lora":
        found = detect(path)
        with apply_lora(base.denoiser, found) as loaded:
            adapter, distance = asdict(loaded), loaded.delta_norm / base.norm
            hashes = {"suspect": loaded.sha256, "base": base.sha256}
            opened = Suspect(base.denoiser, label, base.label, "carries", None, adapter, loaded.warnings, {}, hashes)
            yield PlacedSuspect(opened, adapter_digest(found, loaded.sha256), distance)
        return
    named = candidate.kind == "folder" and path.is_file()  # a variant, which its folder's config goes with
    found = detect(root, candidate.path) if named else detect_denoiser(path)
    tensors, denoiser = _read_whole(found, base, short(candidate.path or label))
    said = () if found.config is None else class_of(found.config)[1]
    opened = Suspect(denoiser or base.denoiser, label, None, "descent", None, warnings=(*found.warnings, *said))
    digest, distance = weights_sha256(tensors), _change(tensors, base.denoiser.state_dict()) / base.norm
    if denoiser is not None:
        # Another function than the same tensors on the base: no verdict may be taken over from one to the other.
        config = {"_class_name": type(denoiser).__name__, **public_config(denoiser)}
        digest = hashlib.sha256(f"{digest} {json.dumps(config, sort_keys=True)}".encode()).hexdigest()
        yield PlacedSuspect(opened, digest, distance)
        return
    live = {**dict(base.denoiser.named_parameters()), **dict(base.denoiser.named_buffers())}
    originals = {name: live[name].data for name in tensors}
    try:
        for name, tensor in tensors.items():
            live[name].data = tensor
        del tensors
        yield PlacedSuspect(opened, digest, distance)
    finally:
        for name, original in originals.items():
            live[name].data = original


def adapter_digest(found: Artifact, tensors: str) -> str:
    """Of an adapter's tensors, whose hash is given, and of everything else that decides their effect."""
    config = found.path.parent / "adapter_config.json"
    metadata = [sorted(header.metadata.items()) for header in found.headers]
    rest = json.dumps([*metadata, read_json(config) if config.is_file() else None, *_read_as(found.path)])
    return hashlib.sha256(f"{tensors} {rest}".encode()).hexdigest()


def _read_whole(found: Artifact, base: Resident, what: str) -> tuple[dict[str, torch.Tensor], nn.Module | None]:
    """A whole denoiser's tensors in float32 by the base's names, and a model of its own where it is not the base's."""
    state = base.denoiser.state_dict()
    names: dict[str, str] = {}
    own = found.kind != "denoiser" or not _has_config_of(found, base)
    if not own:
        names, own = _fit_names(found, base, what)
    if own:
        # The same tensors under another config are another function, so diffusers builds what config and shapes say.
        model = load_denoiser(found, base=base.denoiser, dtype=torch.float32)
        return {n: v.float() if v.is_floating_point() else v for n, v in model.state_dict().items()}, model
    weights = read_weights(found.headers, names, state, torch.float32)
    return {name: tensor.to(state[name].dtype) for name, tensor in weights}, None


def _change(tensors: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> float:
    """Euclidean norm of the change from `state` to `tensors`; channels and weights that one of them lacks are zero there."""
    squares = 0.0
    for name in {**state, **tensors}:
        found = [side[name].double() for side in (tensors, state) if name in side and side[name].is_floating_point()]
        if len(found) == 2 and found[0].shape != found[1].shape:
            sizes = [max(pair) for pair in zip(found[0].shape, found[1].shape, strict=True)]
            found = [_pad(tensor, sizes) for tensor in found]
        if found:
            squares += float((found[0] - found[1] if len(found) == 2 else found[0]).square().sum())
    return math.sqrt(squares)


def _pad(tensor: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    padded = tensor.new_zeros(sizes)
    padded[tuple(map(slice, tensor.shape))] = tensor
    return padded


def _has_config_of(found: Artifact, base: Resident) -> bool:
    """Whether a model is built as the base is: a bare file always, a folder where its config says so."""
    config = found.config
    return config is None or (
        config.get("_class_name") == type(base.denoiser).__name__ and _fill(config, base) == base.config
    )


def _fill(config: Mapping[str, Any], base: Resident) -> dict[str, Any]:
    """What the base's class would make of a config file: a key that it lacks has the class's default, not the base's value."""
    accepted = inspect.signature(type(base.denoiser).__init__).parameters
    defaults = {n: p.default for n, p in accepted.items() if p.default is not inspect.Parameter.empty}
    return json.loads(json.dumps(defaults)) | {n: value for n, value in config.items() if n in accepted}
