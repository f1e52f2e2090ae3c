"""Whether a whole denoiser's file fits a model, told by headers alone: before a download, and before a tensor is read."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from ..errors import NotTestableError, UnsafeFileError, WrongBaseError
from ..files.safetensors_header import Header, TensorInfo
from ..files.text import short
from .artifact import Artifact
from .detect import LDM_PREFIX, common_prefix
from .families import base_hint
from .layouts import is_left_out
from .model_folder import modern_attention
from .module_names import strip_wrappers
from .packing import QUANTO_DATA, QUANTO_MAP, SCALE_NOTES, refuse_packed, refuse_quantised, scales_of


Shapes = Mapping[str, tuple[int, ...]]


def compare_shapes(expected: Shapes, found: Shapes, what: str) -> None:
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


def weight_names(headers: Sequence[Header], prefix: str = "") -> dict[str, str]:
    """Key in the files -> name without `prefix`, for the weights under it; scales and their notes are not weights.

    Raises:
        NotTestableError: packed numbers. UnsafeFileError: a weight twice, plain and packed.
    """
    found: dict[str, str] = {}
    for header in headers:
        refuse_packed(header)
        found |= _without_scales(header, prefix)
    return found


def bare_names(header: Header, expected: Collection[str]) -> dict[str, str]:
    """`weight_names` of a bare file, without what wraps the denoiser there (`module.unet.`, `_orig_mod.` at any depth).

    Where names are wrapped, what is not belongs to other models of a pipeline and is left out, as by the stock tools.

    Args:
        expected: the model's own names.
    Raises:
        NotTestableError: as `weight_names`. UnsafeFileError: also two weights under one name.
    """
    if header.path.suffix.lower() == ".gguf":  # its own packings, which its library undoes
        found = {key: key for key in header.tensors}
    else:
        found = weight_names([header])
    names = {key: strip_wrappers(name) for key, name in found.items()}
    wrapped = {key: name for key, name in names.items() if name != found[key]}
    if any(name in expected for name in wrapped.values()):
        plain = any(name in expected for key, name in names.items() if key not in wrapped)
        names = names if plain else wrapped
    else:  # wrappers of other trainers, one before every name
        prefix = common_prefix(found.values(), dict.fromkeys(expected))
        names = {key: name.removeprefix(prefix) for key, name in found.items() if name.startswith(prefix)}
    if len(set(names.values())) < len(names):
        raise UnsafeFileError(f"{header.path.name!r} holds weights twice, under two prefixes")
    return names


def folder_names(found: Artifact) -> dict[str, str]:
    """`weight_names` of a denoiser's folder, whose config says whether packed numbers are what its weights stand for.

    Raises:
        NotTestableError: numbers that only another library reads, or packed ones of which the config says nothing.
        UnsafeFileError: as `weight_names`.
    """
    stored = (found.config or {}).get("quantization_config")
    refuse_quantised(stored, str(found.path))
    names = weight_names(found.headers)
    for header in found.headers:
        packed = stored is None and any(key.endswith(QUANTO_DATA) for key in header.tensors)
        if packed and not (found.path / QUANTO_MAP).is_file():
            raise NotTestableError(
                f"{header.path.name!r} holds packed numbers, and config.json does not say of which library, nor does a "
                f"{QUANTO_MAP}"
            )
    return names


def _without_scales(header: Header, prefix: str) -> dict[str, str]:
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


def fit_weights(headers: Sequence[Header], names: Mapping[str, str], expected: Shapes, what: str) -> dict[str, str]:
    """Key in the files -> name in the model, for a whole denoiser in diffusers keys, old names of attention included.

    Args:
        names: from `weight_names`. expected: shapes of the model's state by name. what: the file, for messages.
    Raises:
        WrongBaseError: names or shapes that do not fit. NotTestableError: adapter layers among the weights.
        UnsafeFileError: one weight under its old name and its new one.
    """
    old = any(".proj_attn." in name for name in names.values()) and not any(".proj_attn." in n for n in expected)
    fitted = {key: modern_attention(name) for key, name in names.items()} if old else dict(names)
    if len(set(fitted.values())) < len(fitted):
        raise UnsafeFileError(f"{what} holds attention weights twice, by their old names and by those of today")
    shapes = {key: info.shape for header in headers for key, info in header.tensors.items()}
    compare_shapes(expected, {name: shapes[key] for key, name in fitted.items()}, what)
    return fitted


def original_part(header: Header) -> dict[str, TensorInfo]:
    """The denoiser's tensors of a file in original keys.

    Of a whole pipeline the rest is not read: the text encoder's position numbers are integers and no packing.
    """
    keys = header.tensors.keys()
    ours = [key for key in keys if key.startswith(LDM_PREFIX)] or [key for key in keys if strip_wrappers(key) != key]
    return {key: header.tensors[key] for key in ours or keys}


def original_shapes(header: Header) -> dict[str, tuple[int, ...]]:
    """Shapes of the denoiser's tensors of a file in original keys, by their names without what wraps them there."""
    return {strip_wrappers(key): info.shape for key, info in original_part(header).items()}


def fit_original(header: Header, expected: Shapes, what: str, model: str) -> dict[str, str]:
    """Key in the file -> name without prefix, for the denoiser of a file in original keys (GGUF too), counted.

    diffusers' converter keeps every number that it knows, so another count means weights invented or left out; what it is known
    to drop is not counted.

    Args:
        expected, what: as in `fit_weights`. model: name of the base's class.
    Raises:
        WrongBaseError: another count. NotTestableError, UnsafeFileError: as `weight_names`.
    """
    ours = original_part(header)
    if header.path.suffix.lower() == ".gguf":  # its own packings, which its library undoes
        names = {key: strip_wrappers(key) for key in ours}
    else:
        names = {key: strip_wrappers(name) for key, name in weight_names([replace(header, tensors=ours)]).items()}
    if len(set(names.values())) < len(names):
        raise UnsafeFileError(f"{what} holds weights twice, under two prefixes")
    shapes = {name: ours[key].shape for key, name in names.items() if not is_left_out(name, model)}
    held, needed = (sum(map(math.prod, part.values())) for part in (shapes, expected))
    if held != needed:
        raise WrongBaseError(
            f"{what} holds {held} numbers of a denoiser, {model} of the base has {needed}.{base_hint(shapes, expected)}"
        )
    return names
