"""A denoiser as its user set it up: offloaded, quantised, compiled, with adapters; what a probe needs to know of that.

Attention slicing, fused projections, gradient checkpointing, ControlNets and half precision need nothing here: the
processors installed are wrapped whatever they are, and the denoiser runs in its own dtype.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.modeling_utils import get_parameter_dtype
from psutil import virtual_memory
from torch import nn

from ..errors import NotTestableError


MEMORY_SHARE = 0.8
"""Of the free memory that a copy for reading may take."""
_PLAIN = (torch.float16, torch.bfloat16, torch.float32)


class Values(Mapping[str, torch.Tensor]):
    """A module's state as the numbers it stands for, made one tensor at a time so that no second copy is held.

    Floating point comes as it is stored, quantised weights dequantised, offloaded ones fetched to the CPU.

    Raises (on access):
        NotTestableError: a tensor is on the meta device and nothing offloaded stands behind it.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.state: dict[str, torch.Tensor] = module.state_dict()

    def __getitem__(self, name: str) -> torch.Tensor:
        value = self.state[name]
        if value.is_meta:
            value = self._fetch_offloaded(name)
        # Every tensor has a method `dequantize`; only subclasses (torchao, quanto) mean it.
        if type(value) not in (torch.Tensor, nn.Parameter) and hasattr(value, "dequantize"):
            value = value.dequantize()
        return value

    def _fetch_offloaded(self, name: str) -> torch.Tensor:
        owner, _, leaf = name.rpartition(".")
        holder = self.module.get_submodule(owner)
        # The outermost module has several hooks in a row, which accelerate's own `align_module_device` does not look into.
        for hook in _hooks(holder):
            if getattr(hook, "weights_map", None) is not None:
                return hook.weights_map[leaf].detach()
        try:
            with align_module_device(holder, "cpu"):
                return getattr(holder, leaf).detach()
        except ValueError as error:  # nothing was offloaded: there never was a value
            raise NotTestableError(f"{name} has no data: it is on the meta device.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self.state)

    def __len__(self) -> int:
        return len(self.state)


SLOTS = ("unet", "transformer", "transformer_2")
"""Names of a pipeline's denoisers, the one judged first; Wan 2.2 runs a second one for the late, less noisy steps."""


def slot_of(denoiser: nn.Module) -> str:
    """The name under which pipelines hold a denoiser of this class, and LoRA files their layers."""
    return "unet" if "UNet" in type(denoiser).__name__ else "transformer"


def denoisers_of(source: Any) -> dict[str, nn.Module]:
    """Every denoiser of a pipeline by its name, the first one first; empty for a path or a bare denoiser."""
    if isinstance(source, nn.Module):
        return {}
    parts = {name: getattr(source, name, None) for name in SLOTS}
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def denoiser_of(source: Any) -> nn.Module | None:
    """The (first) denoiser of a pipeline or the module itself; None for a path."""
    return next(iter(denoisers_of(source).values()), source if isinstance(source, nn.Module) else None)


def placement(denoiser: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where the denoiser's inputs go, and the dtype it computes in."""
    device = next(denoiser.parameters()).device
    if device.type == "meta":  # accelerate keeps the weights elsewhere until they are needed
        execution = getattr(getattr(denoiser, "_hf_hook", None), "execution_device", None)
        device = torch.device("cpu" if execution is None else execution)
    dtype = get_parameter_dtype(denoiser)
    return device, dtype if dtype.is_floating_point else torch.float32


def adapters(denoiser: nn.Module) -> list[str]:
    """Names of the PEFT adapters that act on this denoiser, whoever put them in.

    The layers say so: diffusers' own method knows only what its mixin loaded, and names adapters that are switched off.
    """
    layers: Iterator[Any] = (
        m for m in denoiser.modules() if hasattr(m, "base_layer") and hasattr(m, "active_adapters")
    )
    return list(dict.fromkeys(name for m in layers if not m.disable_adapters for name in m.active_adapters))


def running_values(denoiser: nn.Module) -> Mapping[str, torch.Tensor]:
    """The values that a forward uses: adapters that are switched off are left out, and the weights below them keep their
    own names, so that the model hashes as it did before they were loaded."""
    values = Values(denoiser)
    layers = {name for name, module in denoiser.named_modules() if hasattr(module, "base_layer")}
    if not layers or adapters(denoiser):
        return values

    def runs(name: str) -> bool:
        parts = name.split(".")
        return all(parts[n] == "base_layer" for n in range(1, len(parts)) if ".".join(parts[:n]) in layers)

    return {name.replace(".base_layer.", "."): values[name] for name in values if runs(name)}


def _has_native_kernels(dtype: torch.dtype) -> bool:
    """Whether CPUs of any make compute in `dtype` at speed; half precision is emulated on most, ten times slower."""
    return dtype not in (torch.float16, torch.bfloat16)


def for_reading(denoiser: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The denoiser itself or, of half precision on a CPU, a float32 copy of it, and words for the report.

    The copy holds the very numbers that are stored; the denoiser is not touched. None is made of a denoiser that is
    offloaded, quantised or cast layer by layer, nor where memory does not hold it.
    """
    device, dtype = placement(denoiser)
    plain = all(type(p.data) is torch.Tensor and not p.is_meta and p.dtype in _PLAIN for p in denoiser.parameters())
    if device.type != "cpu" or _has_native_kernels(dtype) or not plain or any(map(_is_hooked, denoiser.modules())):
        return denoiser, ()
    parameters = [*denoiser.parameters(), *denoiser.buffers()]
    needed = sum(4 * p.numel() for p in parameters)
    if needed > MEMORY_SHARE * virtual_memory().available:
        return denoiser, (f"it was read in {dtype} on the CPU, for memory holds no float32 copy: slow.",)
    # Cast on the way, so that there never is a second copy in half precision.
    cast = {id(p): _as_float32(p) for p in parameters if p.is_floating_point()}
    copied: nn.Module = copy.deepcopy(denoiser, memo=dict(cast))
    return copied, (f"it is stored in {dtype}, of which CPUs are slow: the same numbers were read in float32.",)


def _as_float32(value: torch.Tensor) -> torch.Tensor:
    cast = value.detach().float()
    cast = cast.clone() if cast.data_ptr() == value.data_ptr() else cast
    return nn.Parameter(cast, requires_grad=False) if isinstance(value, nn.Parameter) else cast


def _is_hooked(module: nn.Module) -> bool:
    """Whether accelerate or diffusers move or cast its weights around a forward."""
    return hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook")


def _hooks(module: nn.Module) -> Sequence[Any]:
    """Accelerate's hooks on a module."""
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else getattr(hook, "hooks", (hook,))


def finish_offload(denoiser: nn.Module) -> None:
    """Offload what an early end of a forward left loaded: accelerate does so behind each module, and some had not ended."""
    for module in denoiser.modules():
        for hook in _hooks(module):
            if getattr(hook, "offload", False) and any(not p.is_meta for p in module.parameters(recurse=False)):
                hook.post_forward(module, None)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for the length of the block; each part gets its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def without_ip_adapter(denoiser: Any) -> Iterator[tuple[str, ...]]:
    """Switch off, for the length of the block, what hides the denoiser's own weights; yields words for the report.

    - An IP-Adapter: it demands an image that no probe bank holds. Its processors attend to text exactly as the plain one
      does, which takes their place; `encoder_hid_proj` is set aside.
    PEFT adapters stay active at their scales: with them the question is about the model as it runs.
    """
    notes = []
    active, loaded = adapters(denoiser), list(getattr(denoiser, "peft_config", None) or ())
    if active:
        notes.append(
            f"adapters {active} are active: the verdict is on the model with them. To ask about an adapter, "
            "pass its file and base."
        )
    elif loaded:
        notes.append(f"adapters {loaded} are loaded and switched off: the verdict is on the model without them.")
    config = getattr(denoiser, "config", None)
    if config is None or getattr(config, "encoder_hid_dim_type", None) != "ip_image_proj":
        yield tuple(notes)
        return
    notes.append(
        "an IP-Adapter is loaded; it was left out while reading, for the mark is in the denoiser's own weights."
    )
    kind, projection, processors = config.encoder_hid_dim_type, denoiser.encoder_hid_proj, denoiser.attn_processors
    text = getattr(denoiser, "text_encoder_hid_proj", None)  # Kolors moves its own projection there
    plain = {n: AttnProcessor2_0() if "IPAdapter" in type(p).__name__ else p for n, p in processors.items()}
    try:
        denoiser.encoder_hid_proj = text
        denoiser.config.encoder_hid_dim_type = "text_proj" if text is not None else None
        denoiser.set_attn_processor(plain)
        yield tuple(notes)
    finally:
        denoiser.set_attn_processor(dict(processors))
        denoiser.encoder_hid_proj, denoiser.config.encoder_hid_dim_type = projection, kind
