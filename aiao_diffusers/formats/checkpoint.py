"""Full models as people upload them: load the denoiser of a file or folder strictly.

Order of work: file names, then headers (`safefile`), then names and shapes against the model class built without
memory, and only then tensor bytes, one tensor at a time; original-layout files go through diffusers' converter.

Upstream behaviour guarded here: diffusers fills missing weights with random ones and only logs it; follows any file
name in a shard index; takes pickles where no safetensors file exists; builds whatever size a config asks for; holds the
mapped file beside the converted weights, and packed GGUF weights beside the unpacked; its single-file converter leaves
out what it does not know, float8 scales among it, and wants one prefix; and packed integers are cast to floats as if
they were weights.
"""

import copy
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import ModelMixin
from torch import nn

from ..denoiser.hashes import tensor_sha256
from ..errors import NotTestableError, SuspectError, UnsafeFileError, WrongBaseError
from ..files.paths import inside, list_weight_files
from ..files.safetensors_header import (
    MAX_HEADER_BYTES,
    Header,
    TensorInfo,
    check_finite,
    load_tensors,
    read_header,
    stream,
)
from ..files.strict_json import parse_json, read_json
from ..files.text import short
from .detect import (
    ADAPTER_KEY,
    DENOISER_FOLDERS,
    LDM_PREFIX,
    TEXT_ENCODER_KEY,
    Detected,
    common_prefix,
    detect,
    is_denoiser_name,
    kind_of_keys,
)
from .families import base_hint
from .gguf import read_tensors, unpack, unpacked_shapes
from .model_folder import check_config, modern_attention, weight_files
from .packing import QUANTO_DATA, SCALE_NOTES, packing_of, scales_of
from .upstream import UPSTREAM_ERRORS


__all__ = [
    "ADAPTER_KEY",
    "MAX_HEADER_BYTES",
    "TEXT_ENCODER_KEY",
    "Detected",
    "Header",
    "TensorInfo",
    "check_finite",
    "compare_shapes",
    "detect",
    "inside",
    "kind_of_keys",
    "list_weight_files",
    "load_denoiser",
    "load_tensors",
    "parse_json",
    "read_header",
    "read_json",
    "short",
    "tensor_sha256",
]


def _denoiser_class(name: object, where: Path) -> type[ModelMixin]:
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise SuspectError(f"{where}: _class_name is {short(name)}, expected the name of a diffusers model")
    found = getattr(diffusers, name, None)
    # Only classes that diffusers itself exports: a class named by a repository must never be imported.
    if not isinstance(found, type) or not issubclass(found, ModelMixin) or not is_denoiser_name(name):
        raise SuspectError(f"{where}: {short(name)} is no denoiser of diffusers {diffusers.__version__}")
    return found


def compare_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Names and shapes must agree exactly; a weight left at random would make every verdict about noise."""
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            raise WrongBaseError(
                f"{what}: {short(name)} has shape {list(found[name])}, the model needs {list(expected[name])}."
                f"{base_hint(found, expected)}"
            )
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if any(".base_layer." in name for name in extra):
        raise NotTestableError(
            f"{what} was saved with adapter layers in place (first {short(extra[0])}), which no stock class loads back: "
            f"ask for it after unload_lora_weights(), or for the adapter alone"
        )
    if missing or extra:
        raise WrongBaseError(
            f"{what}: {len(missing)} of {len(expected)} weights are missing (first {short(missing[:1])}), "
            f"{len(extra)} are unknown to the model (first {short(extra[:1])}).{base_hint(found, expected)}"
        )


def _from_folder(folder: Path, dtype: torch.dtype | None) -> nn.Module:
    config = read_json(folder / "config.json")
    model_class = _denoiser_class(config.get("_class_name"), folder / "config.json")
    if not _readable(config.get("quantization_config")):
        raise NotTestableError(_quantised(str(folder), config["quantization_config"]))
    files = weight_files(folder)
    found: dict[str, tuple[int, ...]] = {}
    names: dict[str, str] = {}
    for file in files:
        header = read_header(file)
        _refuse_packed(header)
        if config.get("quantization_config") is None and any(key.endswith(QUANTO_DATA) for key in header.tensors):
            raise NotTestableError(
                f"{file.name!r} holds packed numbers, and config.json does not say of which library"
            )
        for key, name in _weights_of(header, "").items():
            names[key], found[name] = name, header.tensors[key].shape
    check_config(config, len(found))
    try:
        with torch.device("meta"):
            blank = model_class.from_config(config)
        wanted = blank.state_dict()
        expected = {name: tuple(t.shape) for name, t in wanted.items()}
    except UPSTREAM_ERRORS as error:
        raise SuspectError(
            f"{folder}: {model_class.__name__} cannot be built from config.json: {short(str(error))}"
        ) from error
    old = any(".proj_attn." in name for name in found) and not any(".proj_attn." in name for name in expected)
    if old:
        names = {key: modern_attention(name) for key, name in names.items()}
        found = {modern_attention(name): shape for name, shape in found.items()}
    compare_shapes(expected, found, str(folder))
    # Buffers are real, for those that no file holds come from the config.
    with init_empty_weights(include_buffers=False):
        model = model_class.from_config(config)
    for file in files:
        for name, tensor in _plain_tensors(read_header(file), names, dtype or torch.float32):
            if wanted[name].is_floating_point() and not tensor.is_floating_point():
                raise NotTestableError(f"{file.name!r}: {short(name)} holds {tensor.dtype}, the model needs floats")
            set_module_tensor_to_device(model, name, "cpu", value=tensor, dtype=tensor.dtype)
    return _finished(model if dtype is None else model.to(dtype), str(folder))


def _finished(model: nn.Module, what: str) -> nn.Module:
    state = model.state_dict()
    blank = [name for name, tensor in state.items() if tensor.is_meta]
    if blank:
        raise WrongBaseError(f"{what}: {len(blank)} weights were left empty, first {short(blank[0])}")
    check_finite(state, what)
    return model.eval()


_QUANTO = ("int8", "float8")
_LIBRARIES = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum-quanto", "gguf": "gguf"}


def _readable(config: Any) -> bool:
    """Whether a folder is plain, or holds 8 bit of optimum-quanto, whose numbers and scales need no library to read."""
    if config is None:
        return True
    wanted = {"quant_method": "quanto"}
    return isinstance(config, dict) and config.items() >= wanted.items() and config.get("weights_dtype") in _QUANTO


def _quantised(what: str, config: Any) -> str:
    """Why a folder that another library has quantised is not read here, and what to do instead."""
    method = config.get("quant_method") if isinstance(config, dict) else None
    library = _LIBRARIES.get(method) if isinstance(method, str) else None
    if library is None:
        return f"{what} is stored quantised by a method unknown here ({short(config)}): ask for the plain weights"
    return (
        f"{what} is stored quantised by {library} ({short(config)}), whose packed tensors only that library reads, some of "
        f"them on a GPU alone: load it with diffusers and {library}, call .dequantize() and pass the denoiser itself"
    )


def _refuse_packed(header: Header) -> None:
    reason = packing_of(header)
    if reason is not None:
        raise NotTestableError(
            f"{header.path.name!r} is stored quantised ({reason}): load it with its own library and pass the dequantised "
            f"denoiser instead"
        )


def _plain_tensors(
    header: Header, wanted: Mapping[str, str], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors named in `wanted` under their new names, finite and in `dtype`, one at a time; float8 scales undone."""
    scale_of = scales_of(header)
    factors = dict(stream(header, set(scale_of.values())))
    for key, tensor in stream(header, wanted.keys()):
        if key in scale_of:
            factor = factors[scale_of[key]].float()
            if factor.numel() not in (1, tensor.shape[0]):
                raise NotTestableError(
                    f"{short(scale_of[key])} of shape {list(factor.shape)} is no scale of {short(key)}"
                )
            tensor = tensor.float() * factor.reshape(-1, *[1] * (tensor.dim() - 1))
        check_finite({key: tensor}, header.path.name)
        yield wanted[key], tensor.to(dtype) if tensor.is_floating_point() else tensor


def _weights_of(header: Header, prefix: str) -> dict[str, str]:
    """File key -> name without `prefix`, for the weights under it; scales and their notes are not weights."""
    used = set(scales_of(header).values())
    names = {
        key: key.removeprefix(prefix).removesuffix(QUANTO_DATA)
        for key in header.tensors
        if key.startswith(prefix) and key not in used and not SCALE_NOTES.search(key)
    }
    for key, name in names.items():
        # Other loaders would take the plain one: the verdict must not be about numbers that nobody runs.
        if key.endswith(QUANTO_DATA) and prefix + name in names:
            raise UnsafeFileError(f"{header.path.name!r} holds {short(name)} twice, plain and packed")
    return names


def _on_base(header: Header, base: nn.Module) -> nn.Module:
    """A whole denoiser state in diffusers keys, put into a copy of the base."""
    expected = {name: tuple(t.shape) for name, t in base.state_dict().items()}
    wanted = _weights_of(header, common_prefix(header.tensors, expected))
    compare_shapes(expected, {name: header.tensors[key].shape for key, name in wanted.items()}, header.path.name)
    model = copy.deepcopy(base)
    state, dtype = model.state_dict(), _dtype_of(base)
    with torch.no_grad():
        for name, tensor in _plain_tensors(header, wanted, dtype):
            state[name].copy_(tensor)
    return _finished(model, header.path.name)


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(t.dtype for t in module.state_dict().values() if t.is_floating_point())


def _count(path: Path, base: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The converter keeps every number that it knows, so another count means weights invented or left out."""
    expected = {name: tuple(t.shape) for name, t in base.state_dict().items()}
    held, needed = (sum(map(math.prod, part.values())) for part in (shapes, expected))
    if held != needed:
        raise WrongBaseError(
            f"{path.name!r} holds {held} numbers of a denoiser, {type(base).__name__} of the base has {needed}."
            f"{base_hint(shapes, expected)}"
        )


def _from_single_file(path: Path, base: nn.Module) -> nn.Module:
    """Original-layout or GGUF checkpoint through diffusers' own converter, shaped by the base's config."""
    if not isinstance(base, ModelMixin) or not hasattr(type(base), "from_single_file"):
        raise SuspectError(f"{path.name!r} is an original-layout checkpoint, which {type(base).__name__} cannot read")
    shaped: Any = base  # ModelMixin's config methods are untyped
    dtype = _dtype_of(base)
    if path.suffix.lower() == ".gguf":
        tensors = read_tensors(path)
        shapes = unpacked_shapes(tensors)
        _count(path, base, shapes)
        try:
            source = unpack(path, tensors, shapes)
        except UPSTREAM_ERRORS as error:
            raise NotTestableError(f"{path.name!r} cannot be unpacked: {short(str(error))}") from error
    else:
        header = read_header(path)
        prefix = LDM_PREFIX if any(key.startswith(LDM_PREFIX) for key in header.tensors) else ""
        # Of a whole pipeline the rest is not read: the text encoder's position numbers are integers and no packing.
        ours = {key: info for key, info in header.tensors.items() if key.startswith(prefix)}
        _refuse_packed(replace(header, tensors=ours))
        wanted = _weights_of(header, prefix)
        _count(path, base, {name: header.tensors[key].shape for key, name in wanted.items()})
        # Its U-Net converter looks for this prefix alone; the others take it off.
        names = {key: LDM_PREFIX + name for key, name in wanted.items()}
        source = dict(_plain_tensors(header, names, dtype))
    with tempfile.TemporaryDirectory() as folder:
        shaped.save_config(folder)
        try:
            model = type(shaped).from_single_file(source, config=folder, local_files_only=True, torch_dtype=dtype)
        except UPSTREAM_ERRORS as error:
            raise WrongBaseError(
                f"{path.name!r} does not fit {type(base).__name__} of the base: {short(str(error), 300)}"
            ) from error
    compare_shapes(
        {name: tuple(t.shape) for name, t in base.state_dict().items()},
        {name: tuple(t.shape) for name, t in model.state_dict().items()},
        path.name,
    )
    return _finished(model, path.name)


def load_denoiser(
    source: str | Path, *, base: nn.Module | str | Path | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Load the denoiser of a pipeline folder, a denoiser folder or a single file.

    Args:
        source: a folder with `model_index.json` (its `unet/` or `transformer/` is loaded) or with `config.json`, or a
            whole-denoiser `.safetensors` (diffusers or original LDM keys) or `.gguf` file.
        base: for a single file, the denoiser (or its folder) whose architecture the file has. It is copied, never
            changed. Folders need none.
        dtype: of the result; None keeps diffusers' default for a folder, the base's dtype for a single file.
    Returns:
        The denoiser in eval mode; every weight came from the file, none is NaN or Inf.
    Raises:
        SuspectError: nothing there, another kind of file, or no base given. WrongBaseError: names or shapes do not fit.
        UnsafeFileError: pickle, hostile header, path trick. NotTestableError: NaN or Inf, or an unreadable quantisation.
    """
    source = Path(source)
    if source.is_dir():
        if (source / "model_index.json").is_file():
            read_json(source / "model_index.json")
            for name in DENOISER_FOLDERS:
                if (source / name / "config.json").is_file():
                    if not (source / name).resolve().is_relative_to(source.resolve()):
                        raise UnsafeFileError(f"{name!r} in {source.name!r} is a link out of its folder")
                    return _from_folder(source / name, dtype)
            raise SuspectError(f"{source} has neither of {', '.join(DENOISER_FOLDERS)} with a config.json")
        if (source / "config.json").is_file():
            return _from_folder(source, dtype)
    found = detect(source)
    if found.kind not in {"denoiser", "single_file"} or len(found.files) != 1:
        raise SuspectError(f"{source} is no whole denoiser but {found.kind} ({found.detail})")
    if base is None:
        raise SuspectError(f"{source} holds weights without a config: give base=, the denoiser it was made from")
    base_model = base if isinstance(base, nn.Module) else load_denoiser(base)
    (file,) = found.files
    if found.kind == "single_file":
        model = _from_single_file(file, base_model)
    else:
        header = read_header(file)
        _refuse_packed(header)
        model = _on_base(header, base_model)
    return model if dtype is None else model.to(dtype)
