"""Full models as people upload them: load the denoiser of a folder, a file or an `Artifact` strictly.

Order of work: file names, then headers (`detect`), then names and shapes against the model class built without memory
(`fit`), and only then tensor bytes, one tensor at a time; original-layout files go through diffusers' converter.

Upstream behaviour guarded here: diffusers fills missing weights with random ones and only logs it; follows any file
name in a shard index; takes pickles where no safetensors file exists; builds whatever size a config asks for; holds the
mapped file beside the converted weights, and packed GGUF weights beside the unpacked; its single-file converter leaves
out what it does not know, float8 scales among it, and wants one prefix; and packed integers are cast to floats as if
they were weights.
"""

import copy
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import set_module_tensor_to_device
from diffusers import ModelMixin, UNet2DConditionModel
from torch import nn

from ..denoiser.sites import unwrap
from ..errors import NotTestableError, SuspectError, WrongBaseError
from ..files.safetensors_header import Header, check_finite
from ..files.text import short
from .architecture import (
    GUIDANCE,
    ORIGINAL_GUIDANCE,
    blank_like,
    blank_of_config,
    known_config,
    rebuild,
)
from .artifact import Artifact
from .detect import LDM_PREFIX, detect_denoiser
from .fit import bare_names, compare_shapes, fit_original, fit_weights, folder_names, original_part
from .gguf import read_gguf_header, unpack
from .layouts import is_original
from .model_folder import DENOISER_FOLDERS
from .module_names import strip_wrappers
from .packing import plain_tensors
from .upstream import UPSTREAM_ERRORS


def load_denoiser(
    source: str | Path | Artifact,
    *,
    base: nn.Module | str | Path | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Load the denoiser of a pipeline folder, a denoiser folder or a single file.

    Args:
        source: a folder with `model_index.json` (its `unet/` or `transformer/` is loaded) or with `config.json`, or a
            whole-denoiser `.safetensors` (diffusers or original LDM keys) or `.gguf` file; or what `detect` made of one.
        base: for a single file, the denoiser (or its folder) whose architecture the file has. It is copied, never
            changed. Folders need none.
        dtype: of the result; None keeps diffusers' default for a folder, the base's dtype for a single file.
    Returns:
        The denoiser in eval mode; every weight came from the file, none is NaN or Inf.
    Raises:
        SuspectError: nothing there, another kind of file, or no base given. WrongBaseError: names or shapes do not fit.
        UnsafeFileError: pickle, hostile header, path trick. NotTestableError: NaN or Inf, or an unreadable quantisation.
    """
    found = source if isinstance(source, Artifact) else detect_denoiser(source)
    if found.kind in {"pipeline", "denoiser", "single_file"} and found.config is not None:
        return _load_folder(found, dtype)
    if found.kind == "pipeline":
        raise SuspectError(f"{found.path} has neither of {', '.join(DENOISER_FOLDERS)} with a config.json")
    if found.kind not in {"denoiser", "single_file"} or len(found.files) != 1:
        raise SuspectError(f"{found.path} is no whole denoiser but {found.kind} ({found.detail})")
    if base is None:
        raise SuspectError(f"{found.path} holds weights without a config: give base=, the denoiser it was made from")
    model = _load_bare(found, unwrap(base if isinstance(base, nn.Module) else load_denoiser(base)))
    return _cast(model, dtype)


def read_weights(
    headers: Sequence[Header], names: Mapping[str, str], model: Mapping[str, torch.Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of a whole denoiser by their names in the model, finite, scales undone, one at a time.

    Args:
        names: from `fit_weights`. model: its state, of which only dtypes are looked at. dtype: of the floats.
    Raises:
        NotTestableError: NaN or Inf, or integers where the model has floats. UnsafeFileError: the file changed.
    """
    for header in headers:
        for name, tensor in plain_tensors(header, names, dtype):
            if model[name].is_floating_point() and not tensor.is_floating_point():
                # Packed integers stand for other numbers than their own.
                raise NotTestableError(
                    f"{header.path.name!r}: {short(name)} holds {tensor.dtype}, the model needs floats"
                )
            yield name, tensor


def _load_folder(found: Artifact, dtype: torch.dtype | None) -> nn.Module:
    """A denoiser by its own config."""
    config: Any = found.config
    what, headers = str(found.path), found.headers
    names = folder_names(found)
    model_class, config = known_config(config, found.path / "config.json", len(names))
    try:
        blank = blank_of_config(model_class, config).state_dict()
    except SuspectError as error:
        raise SuspectError(f"{what}: {error}") from error
    names = fit_weights(headers, names, _shapes(blank), what)
    # Buffers are real, for those that no file holds come from the config.
    with init_empty_weights(include_buffers=False):
        model = model_class.from_config(config)
    _fill(model, read_weights(headers, names, blank, dtype or torch.float32))
    return _finish(_cast(model, dtype), what)


def _load_bare(found: Artifact, base: nn.Module) -> nn.Module:
    """A file without a config, in whose names its weights are."""
    (path,) = found.files
    header = found.headers[0] if found.headers else read_gguf_header(path)
    state = base.state_dict()
    ours = original_part(header) if found.kind == "single_file" else header.tensors
    # Adapters in the base's layers change its names; the file's are those of the model below.
    plain = {name.replace(".base_layer", "") for name in state}
    names = bare_names(replace(header, tensors=dict(ours)), plain)
    # Some originals share most names with diffusers; some files in its names carry the originals' prefix.
    ours_are_plain = len(plain & set(names.values())) > len(names) / 2 and not is_original(names.values())
    in_diffusers_names = found.kind == "denoiser" or ours_are_plain
    wanted = names if in_diffusers_names else {key: strip_wrappers(key) for key in ours}
    blank = blank_like(base, {name: header.tensors[key].shape for key, name in wanted.items()})
    if in_diffusers_names:
        return _load_on_base(header, names, base, blank)
    return _load_original(header, base, blank or base)


def _load_on_base(header: Header, names: Mapping[str, str], base: nn.Module, blank: nn.Module | None) -> nn.Module:
    """A whole denoiser in diffusers keys: in a copy of the base, or in `blank` where the file has another architecture."""
    state = (base if blank is None else blank).state_dict()
    names = fit_weights([header], names, _shapes(state), header.path.name)
    weights: Iterator[tuple[str, torch.Tensor]]
    if header.path.suffix.lower() == ".gguf":
        weights = ((name, tensor.to(_dtype_of(base))) for name, tensor in unpack(header, names))
    else:
        weights = read_weights([header], names, state, _dtype_of(base))
    if blank is not None:
        _fill(blank, weights)
        return _finish(blank, header.path.name)
    model = copy.deepcopy(base)
    state = model.state_dict()
    with torch.no_grad():
        for name, tensor in weights:
            state[name].copy_(tensor)
    return _finish(model, header.path.name)


def _load_original(header: Header, base: nn.Module, model: nn.Module) -> nn.Module:
    """Original-layout or GGUF checkpoint through diffusers' own converter, shaped by the config of `model`."""
    path = header.path
    if not isinstance(model, ModelMixin) or not hasattr(type(model), "from_single_file"):
        raise SuspectError(f"{path.name!r} is an original-layout checkpoint, which {type(base).__name__} cannot read")
    dtype, packed = _dtype_of(base), path.suffix.lower() == ".gguf"
    expected = _shapes(model.state_dict())
    names = fit_original(header, expected, repr(path.name), type(base).__name__)
    # The converter of U-Nets looks for this prefix alone; some of the others count the parts of a name and fail on it.
    if isinstance(model, UNet2DConditionModel):
        names = {key: LDM_PREFIX + name for key, name in names.items()}
    source = dict(unpack(header, names) if packed else plain_tensors(header, names, dtype))
    # The converter does not know the embedding of guidance, and would leave it out.
    guidance = source.pop(LDM_PREFIX + ORIGINAL_GUIDANCE, None)
    shaped: Any = model if guidance is None else rebuild(model, {"time_cond_proj_dim": None})
    with tempfile.TemporaryDirectory() as folder:
        shaped.save_config(folder)
        try:
            loaded = type(shaped).from_single_file(source, config=folder, local_files_only=True, torch_dtype=dtype)
        except UPSTREAM_ERRORS as error:
            raise WrongBaseError(
                f"{path.name!r} does not fit {type(base).__name__} of the base: {short(str(error), 300)}"
            ) from error
    state = loaded.state_dict() | ({} if guidance is None else {GUIDANCE: guidance.to(dtype)})
    compare_shapes(expected, _shapes(state), path.name)
    if guidance is not None:
        loaded = rebuild(model, {})
        _fill(loaded, state.items())
    return _finish(loaded, path.name)


def _fill(model: nn.Module, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    for name, tensor in weights:
        set_module_tensor_to_device(model, name, "cpu", value=tensor, dtype=tensor.dtype)


def _cast(model: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    # Not diffusers' own `to`, which warns on the terminal of weights to be kept in float32, also where there are none.
    return model if dtype is None else nn.Module.to(model, dtype)


def _finish(model: nn.Module, what: str) -> nn.Module:
    state = model.state_dict()
    blank = [name for name, tensor in state.items() if tensor.is_meta]
    if blank:
        raise WrongBaseError(f"{what}: {len(blank)} weights were left empty, first {short(blank[0])}")
    check_finite(state, what)
    return model.eval()


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next(t.dtype for t in module.state_dict().values() if t.is_floating_point())


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
