"""What can be said of a suspect without a forward: does it fit the base, is it a copy, how far from the base is it?

And the one place where a suspect goes onto the base: a LoRA is added to the resident denoiser, a full checkpoint's
tensors stand in for the base's, and afterwards the base's own tensors are back.
"""

import hashlib
import inspect
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..denoiser.hashes import tensor_sha256, weights_sha256
from ..errors import LoraNotLoadedError, NotTestableError, WrongBaseError
from ..files.safetensors_header import check_finite, load_tensors, read_header
from ..files.strict_json import read_json
from ..files.text import short
from ..formats.adapter_algebra import new_weight, parse
from ..formats.checkpoint import compare_shapes, load_denoiser
from ..formats.detect import common_prefix
from ..formats.lora import apply_lora
from ..formats.model_folder import modern_attention
from ..hub.candidates import Candidate
from ..hub.remote import Remote
from ..verification.suspect import Suspect


_LDM_PREFIX = "model.diffusion_model."
PEFT_FILE = "adapter_model.safetensors"


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
        self.config = _plain_config(denoiser)
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


def check_fits(candidate: Candidate, base: Resident) -> None:
    """Names and shapes of a header against the base's, before a weight is downloaded.

    Raises:
        WrongBaseError: another architecture. LoraNotLoadedError: no tensor finds a module. SuspectError: incomplete
        factors. NotTestableError: more bytes than any change of this base could need.
    """
    what = f"{short(candidate.path or candidate.weights[0])} of another architecture"
    tensors = {name: info.shape for header in candidate.headers for name, info in header.tensors.items()}
    size = sum(header.file_bytes for header in candidate.headers)
    # Three times float32 leaves room for float64; an original-layout file also holds a VAE and text encoders.
    if size > 3 * base.bytes + (2**35 if candidate.kind == "single_file" else 2**25):
        raise NotTestableError(
            f"{short(candidate.path)} has {size / 1e9:.1f} GB, {size / base.bytes:.0f} times the base: not downloaded."
        )
    if candidate.kind == "lora":
        _check_adapter(tensors, what, base)
    elif candidate.kind == "single_file":
        own = {n: s for n, s in tensors.items() if n.startswith(_LDM_PREFIX)} or tensors
        count, wanted = sum(math.prod(s) for s in own.values()), sum(math.prod(s) for s in base.shapes.values())
        if count != wanted:
            raise WrongBaseError(f"{what}: {count} weights in its denoiser, the base has {wanted}")
    else:
        compare_shapes(base.shapes, _named(tensors, base), what)


def _named(tensors: Mapping[str, Any], base: Resident) -> dict[str, Any]:
    """Tensors by the base's names: without a prefix, and attention as diffusers calls it today."""
    prefix = common_prefix(tensors, base.shapes)
    found = {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
    old = any(".proj_attn." in n for n in found) and not any(".proj_attn." in n for n in base.shapes)
    return {modern_attention(n): value for n, value in found.items()} if old else found


def _check_adapter(shapes: Mapping[str, tuple[int, ...]], what: str, base: Resident) -> None:
    try:
        parsed = parse({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, base.blank)
        modules = {name: module for name, module in base.blank.named_modules()}
        for group in parsed.groups:
            weight = getattr(modules[group.module], "weight", None)
            if isinstance(weight, torch.Tensor) and group.factors.keys() - {"diff_b"}:
                new_weight(group, weight, 1.0, 1.0)
    except WrongBaseError as error:
        raise WrongBaseError(f"{what}: {error}") from error
    except (RuntimeError, OverflowError) as error:  # what torch says of shapes that no memory could hold
        raise WrongBaseError(f"{what}: {short(str(error))}") from error
    if not parsed.groups:
        raise LoraNotLoadedError(f"{what}: none of its {len(shapes)} tensors finds a module of the base")


@contextmanager
def place_on_base(candidate: Candidate, root: Path, label: str, base: Resident) -> Iterator[PlacedSuspect]:
    """The suspect on the resident denoiser for the length of the block; peak memory is the suspect's own tensors.

    Raises:
        NotTestableError, SuspectError, UnsafeFileError: as `lora.applied` and `checkpoint.load_denoiser`.
    """
    path = root / candidate.path
    if candidate.kind == "lora":
        digest = _adapter_digest(path)
        with apply_lora(base.denoiser, path) as loaded:
            adapter, distance = asdict(loaded), loaded.delta_norm / base.norm
            hashes = {"suspect": loaded.sha256, "base": base.sha256}
            opened = Suspect(base.denoiser, label, base.label, "carries", None, adapter, loaded.warnings, {}, hashes)
            yield PlacedSuspect(opened, digest, distance)
        return
    tensors, denoiser = _checkpoint(candidate, root, base)
    check_finite(tensors, short(candidate.path or label))
    state = base.denoiser.state_dict()
    moved = sum(
        float((tensors[n].double() - v.double()).square().sum()) for n, v in state.items() if v.is_floating_point()
    )
    opened = Suspect(denoiser or base.denoiser, label, None, "descent", None)
    digest, distance = weights_sha256(tensors), math.sqrt(moved) / base.norm
    if denoiser is not None:
        # Another function than the same tensors on the base: no verdict may be taken over from one to the other.
        config = {"_class_name": type(denoiser).__name__, **_plain_config(denoiser)}
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


def _adapter_digest(path: Path) -> str:
    """Of tensors and of everything else that decides their effect."""
    config = path.parent / "adapter_config.json"
    rest = json.dumps(
        [sorted(read_header(path).metadata.items()), read_json(config) if config.is_file() else None, *_read_as(path)]
    )
    return hashlib.sha256(f"{tensor_sha256(load_tensors(path))} {rest}".encode()).hexdigest()


def _checkpoint(candidate: Candidate, root: Path, base: Resident) -> tuple[dict[str, torch.Tensor], nn.Module | None]:
    """A checkpoint's tensors in float32 by the base's names, and a model of its own where only diffusers can read it."""
    path = root / candidate.path
    if candidate.kind == "folder":
        config = read_json(path / "config.json")
        if config.get("quantization_config") is not None:
            raise NotTestableError(
                f"{short(candidate.path)} is stored quantised: pass the dequantised denoiser to verify."
            )
        plain = config.get("_class_name") == type(base.denoiser).__name__ and _filled(config, base) == base.config
    else:
        plain = candidate.kind == "denoiser"
    if not plain:
        # The same tensors under another config are another function, so diffusers builds what the config says.
        model = load_denoiser(path, base=base.denoiser, dtype=torch.float32)
        return {n: v.float() if v.is_floating_point() else v for n, v in model.state_dict().items()}, model
    raw: dict[str, torch.Tensor] = {}
    for name in candidate.weights:
        raw |= load_tensors(root / name)
    tensors = _named(raw, base)
    compare_shapes(base.shapes, {n: tuple(t.shape) for n, t in tensors.items()}, short(candidate.path))
    kinds = {n: v.dtype for n, v in base.denoiser.state_dict().items()}
    for name, tensor in tensors.items():
        if kinds[name].is_floating_point and not tensor.is_floating_point():
            # Packed integers stand for other numbers than their own.
            raise NotTestableError(
                f"{short(candidate.path)}: {short(name)} holds {tensor.dtype}, the model needs floats: "
                "ask for the dequantised weights."
            )
    return {n: t.to(kinds[n]) for n, t in tensors.items()}, None


def _plain_config(denoiser: Any) -> dict[str, Any]:
    """A denoiser's config as JSON gives it back, without notes on where it came from."""
    return json.loads(json.dumps({k: v for k, v in denoiser.config.items() if not k.startswith("_")}))


def _filled(config: Mapping[str, Any], base: Resident) -> dict[str, Any]:
    """What the base's class would make of a config file: a key that it lacks has the class's default, not the base's value."""
    accepted = inspect.signature(type(base.denoiser).__init__).parameters
    defaults = {n: p.default for n, p in accepted.items() if p.default is not inspect.Parameter.empty}
    return json.loads(json.dumps(defaults)) | {n: value for n, value in config.items() if n in accepted}
