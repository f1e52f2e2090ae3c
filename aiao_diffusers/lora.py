"""Apply a LoRA of any trainer to a live denoiser, strictly, and take it off again bit for bit.

Every format becomes new weights of named modules (`lora_formats`), swapped in and out, rather than adapter layers of
peft: one rule then covers LoRA, LoCon, LoHa, LoKr, DoRA and full differences, the norm of what really changed can be
measured, the denoiser keeps its module tree (sites, processors), and leaving means putting the original tensors back.

Upstream behaviour guarded here (diffusers 0.42, peft 0.21): native peft keys load nothing and say nothing; kohya
`dora_scale` and `lora_mid` are dropped; LoHa raises; keys of unknown modules are logged and ignored; a DoRA or
rank-stabilised adapter without its config gets another scale. Here zero modules or a zero change raises, and every key
that found no module is reported.
"""

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import detect
from .errors import LoraNotLoadedError, NotTestableError, SuspectError, WrongBaseError
from .lora_formats import EXPECTED_PREFIXES, Group, Parsed, Scaling, new_weight, parse, scaling_of
from .safefile import (
    check_finite,
    inside,
    list_weight_files,
    load_tensors,
    parse_json,
    read_header,
    read_json,
    short,
    tensor_sha256,
)


__all__ = ["LoadedLora", "applied"]

_METADATA_KEY = "lora_adapter_metadata"
_PEFT_TYPES = ("LORA", "LOHA", "LOKR")
_UNSUPPORTED_FIELDS = (
    "fan_in_fan_out",
    "layer_replication",
    "trainable_token_indices",
    "target_parameters",
    "use_qalora",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
_BASE_CHANGING_INITS = ("pissa", "olora", "loftq", "corda", "lora_ga")
_BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True)
class LoadedLora:
    """What an adapter really did to the denoiser.

    Args:
        kind: loha, lokr, diff or dora where that is the algorithm; else the layout: diffusers, diffusers-old, peft, kohya.
        modules: modules with at least one changed value, at least 1.
        delta_norm: Euclidean norm of the change of the stored weights, after rounding to their dtype; above 0.
        relative_norm: delta_norm over the norm of the changed modules' original weights.
        scale: the user's multiplier; alpha over rank comes on top.
        unused_keys: keys that found no module of this denoiser (text-encoder keys are counted apart).
        text_encoder_keys: their number; they change no denoiser.
        warnings: what the report must say.
        sha256: `tensor_sha256` of the adapter file's tensors.
    """

    kind: str
    modules: int
    delta_norm: float
    relative_norm: float
    scale: float
    unused_keys: tuple[str, ...]
    text_encoder_keys: int
    warnings: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class _File:
    path: Path
    state: dict[str, torch.Tensor]
    scaling: Scaling | None
    warnings: tuple[str, ...]


def _pick(source: Path, weight_name: str | None) -> Path:
    """The adapter file meant by a file or folder path."""
    if weight_name is not None:
        if not source.is_dir():
            raise SuspectError(f"weight_name={weight_name!r} needs a folder, but {source} is none")
        return inside(source, weight_name)
    if not source.is_dir():
        return source
    files = list_weight_files(source)
    if (source / "adapter_config.json").is_file() and source / "adapter_model.safetensors" in files:
        return source / "adapter_model.safetensors"
    if len(files) == 1:
        return files[0]
    adapters = [file for file in files if detect(file).kind == "lora"]
    if len(adapters) == 1:
        return adapters[0]
    names = ", ".join(file.name for file in adapters or files)
    raise SuspectError(f"{source} holds several candidates: {names}. Say which one with weight_name=")


def _number(config: Mapping[str, Any], name: str, where: str) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise SuspectError(f"{where}: {name} is {short(value)}, expected a number")
    return value


def _scaling(config: Mapping[str, Any], where: str) -> Scaling:
    """peft's config fields that decide the scale; fields that change the algebra are refused, code is never imported."""
    kind = config.get("peft_type", "LORA")
    if kind not in _PEFT_TYPES:
        raise NotTestableError(f"{where}: peft_type {short(kind)} is not one of {', '.join(_PEFT_TYPES)}")
    odd = [name for name in _UNSUPPORTED_FIELDS if config.get(name)]
    if odd:
        raise NotTestableError(f"{where}: {', '.join(odd)} changes how the adapter acts; merge it with peft first")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_INITS):
        raise NotTestableError(
            f"{where}: init_lora_weights={start!r} trained on an altered base. Ask for a converted adapter "
            f"(peft: save_pretrained(..., path_initial_model_for_weight_conversion=...)) or a merged model"
        )
    r = _number(config, "r", where)
    if r is not None and (r != int(r) or r < 1):
        raise SuspectError(f"{where}: r is {short(r)}, expected a positive integer")
    patterns = {}
    for name in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict):
            raise SuspectError(f"{where}: {name} is {short(pattern)}, expected an object")
        patterns[name] = {key: _number(pattern, key, where) for key in pattern}
    alpha = _number(config, "lora_alpha", where)
    # peft's LoHa and LoKr call the same field alpha.
    alpha = _number(config, "alpha", where) if alpha is None else alpha
    return Scaling(
        None if r is None else int(r),
        alpha,
        patterns["rank_pattern"],
        patterns["alpha_pattern"],
        bool(config.get("use_rslora")),
    )


def _metadata_config(metadata: Mapping[str, str], where: str) -> dict[str, Any] | None:
    """The adapter config that diffusers writes into the file, reduced to the denoiser's entries."""
    raw = metadata.get(_METADATA_KEY)
    if raw is None:
        return None
    config = parse_json(raw.encode(), where)
    for prefix in ("unet.", "transformer."):
        own = {key.removeprefix(prefix): value for key, value in config.items() if key.startswith(prefix)}
        if own:
            return own
    return None if any(key.startswith("text_encoder") for key in config) else config


def _read(source: Path, weight_name: str | None) -> _File:
    path = _pick(source, weight_name)
    found = detect(path)
    if found.kind != "lora":
        fix = {
            "denoiser": "It is a whole model: load it with load_denoiser.",
            "single_file": "It is a whole model: load it with load_denoiser.",
            "text_encoder_only": "It changes text encoders only.",
            "textual_inversion": "It changes the prompt's embedding only.",
        }.get(found.kind, "It is not a fine-tune of the denoiser.")
        raise LoraNotLoadedError(
            f"{path.name!r} holds no LoRA of a denoiser but {found.kind} ({found.detail}): 0 modules would change. {fix}"
        )
    header = read_header(path)
    state = load_tensors(path)
    check_finite(state, path.name)
    warnings: tuple[str, ...] = ()
    config_path = path.parent / "adapter_config.json"
    native = any(key.startswith("base_model.model.") for key in state)
    config = _metadata_config(header.metadata, path.name)
    if config is None and (native or path.name == "adapter_model.safetensors"):
        if config_path.is_file():
            config = read_json(inside(path.parent, config_path.name))
        else:
            warnings = (f"{path.name} has no adapter_config.json: alpha is unknown, taken equal to the rank",)
    return _File(path, state, None if config is None else _scaling(config, path.name), warnings)


def _likely_base(state: Mapping[str, torch.Tensor]) -> str:
    """Stable Diffusion's generations differ in the width of the text that cross-attention reads."""
    for key, tensor in state.items():
        text_side = re.search(r"attn2[._](processor\.)?to_k(\.|_).*(down|A)\b", key) and tensor.dim() == 2
        if text_side and tensor.shape[1] in _BASES:
            return f" The file looks made for {_BASES[tensor.shape[1]]}."
    return ""


def _modules(denoiser: nn.Module) -> dict[str, nn.Module]:
    """Modules by plain name, seen through peft's wrappers."""
    found = {}
    for name, module in denoiser.named_modules():
        if getattr(module, "fused_projections", False):
            # A LoRA on to_q would then change a layer that the forward pass no longer reads.
            raise SuspectError(f"{name} has fused projections: call unfuse_qkv_projections() first")
        found[name.replace(".base_layer", "")] = module
    return found


def _plain(parameter: object, name: str) -> nn.Parameter:
    if type(parameter) is not nn.Parameter or parameter.is_meta or not parameter.is_floating_point():
        raise NotTestableError(
            f"{name} is quantised, offloaded or missing: load the denoiser dequantised, on one device"
        )
    return parameter


class _Plan:
    """New tensors by parameter; filled completely before the denoiser is touched."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[nn.Parameter, torch.Tensor]] = {}
        self.by_module: dict[str, list[nn.Parameter]] = {}

    def current(self, parameter: nn.Parameter) -> torch.Tensor:
        # Two modules may share one parameter; the second must build on the first.
        value = self.entries[id(parameter)][1] if id(parameter) in self.entries else parameter.data
        return value.to(torch.float64 if parameter.dtype == torch.float64 else torch.float32)

    def add(self, module: str, parameter: nn.Parameter, value: torch.Tensor) -> None:
        new = value.to(parameter.dtype)
        # float8 has no isfinite kernel.
        if not bool(torch.isfinite(new.float()).all()):
            raise NotTestableError(f"the adapter makes {module} overflow {parameter.dtype}")
        self.entries[id(parameter)] = (parameter, new)
        self.by_module.setdefault(module, []).append(parameter)


def _plan(parsed: Parsed, denoiser: nn.Module, scaling: Scaling | None, scale: float) -> tuple[_Plan, list[str]]:
    plan, modules, leftover = _Plan(), _modules(denoiser), []
    for group in parsed.groups:
        module = modules[group.module]
        weight = _plain(getattr(module, "weight", None), group.module)
        current = plan.current(weight)
        factors = {role: t.to(current.device, current.dtype) for role, t in group.factors.items()}
        ready = Group(group.module, group.layout, factors, group.keys)
        factor = scaling_of(ready, scaling)
        if factors.keys() - {"diff_b"}:
            plan.add(group.module, weight, new_weight(ready, current, factor, scale))
        for role, strength in (("up_bias", factor * scale), ("diff_b", scale)):
            if role not in factors:
                continue
            bias = getattr(module, "bias", None)
            if bias is None:
                leftover.append(group.keys[role])
                continue
            bias = _plain(bias, f"{group.module}.bias")
            if bias.shape != factors[role].shape:
                raise WrongBaseError(
                    f"{short(group.keys[role])} has shape {list(factors[role].shape)}, the bias of {group.module} has "
                    f"{list(bias.shape)}"
                )
            plan.add(group.module, bias, plan.current(bias) + strength * factors[role])
    return plan, leftover


def _kind(groups: list[Group]) -> str:
    names = {g.algorithm for g in groups} - {"lora"}
    if not names and any({"magnitude", "dora_scale"} & g.factors.keys() for g in groups):
        names = {"dora"}
    return "+".join(sorted(names or {g.layout for g in groups}))


def _measure(plan: _Plan) -> tuple[int, float, float]:
    """Number of modules that changed, norm of the change, norm of what those modules held before."""
    changed, squared, original = 0, 0.0, 0.0
    for parameters in plan.by_module.values():
        moved = 0.0
        for parameter in parameters:
            before, after = parameter.data.double(), plan.entries[id(parameter)][1].double()
            moved += float((after - before).square().sum())
        if moved > 0:
            changed += 1
            squared += moved
            original += sum(float(p.data.double().square().sum()) for p in parameters)
    return changed, math.sqrt(squared), math.sqrt(original)


@contextmanager
def applied(
    denoiser: nn.Module, source: str | Path, scale: float = 1.0, weight_name: str | None = None
) -> Iterator[LoadedLora]:
    """Run the body with a LoRA added to the denoiser's weights; afterwards the original tensors are back.

    Uses nest: the inner adapter adds to the outer, and each block undoes its own. DoRA alone depends on the order, since
    its norms are those of the weights it meets. The tensors are swapped, not overwritten, so restoring is exact whatever
    the body does to the weights; peak memory is one extra copy of the changed modules.

    Args:
        denoiser: a diffusers U-Net or transformer on its device, float weights of any precision.
        source: a `.safetensors` file, or a folder with one adapter in it (peft's or any other).
        scale: multiplier on top of alpha / rank, default 1.
        weight_name: which file of a folder with several.
    Yields:
        `LoadedLora`, whose `modules` and `delta_norm` are above zero.
    Raises:
        LoraNotLoadedError: nothing in the denoiser would change. WrongBaseError: shapes do not fit.
        NotTestableError: NaN or Inf, an adapter algebra without a definition here, quantised weights.
        SuspectError: no such file, several candidates, incomplete factors. UnsafeFileError: pickle or hostile file.
    """
    if not math.isfinite(scale):
        raise SuspectError(f"scale is {scale}, expected a finite number")
    file = _read(Path(source), weight_name)
    # Under a caller's inference_mode the new tensors would be inference tensors, which a parameter cannot hold.
    with torch.inference_mode(False), torch.no_grad():
        parsed = parse(file.state, denoiser)
        try:
            plan, leftover = _plan(parsed, denoiser, file.scaling, scale)
        except WrongBaseError as error:
            raise WrongBaseError(f"{file.path.name!r}: {error}.{_likely_base(file.state)}") from error
        modules, delta_norm, before = _measure(plan)
    unused = (*parsed.unused, *leftover)
    if modules == 0 or not delta_norm > 0:
        first = next(iter(file.state), None)
        raise LoraNotLoadedError(
            f"{file.path.name!r} changed 0 modules: {len(parsed.groups)} found in the denoiser, norm of the change "
            f"{delta_norm:g} at scale {scale:g}; {len(unused)} of {len(file.state)} keys unused, "
            f"{parsed.text_encoder_keys} of text encoders (first key {short(first)}, expected prefixes "
            f"{', '.join(EXPECTED_PREFIXES)}). A verdict would describe the base, not the LoRA."
            f"{_likely_base(file.state)} Check that the file belongs to this base, or ask for the merged model."
        )
    warnings = list(file.warnings)
    if unused:
        share = len(unused) / len(file.state)
        warnings.append(f"{len(unused)} keys ({share:.0%}) found no module in the denoiser, first {short(unused[0])}")
    if modules < len(plan.by_module):
        warnings.append(f"{len(plan.by_module) - modules} of {len(plan.by_module)} modules did not change at all")
    loaded = LoadedLora(
        _kind(parsed.groups),
        modules,
        delta_norm,
        delta_norm / before if before else math.inf,
        scale,
        unused,
        parsed.text_encoder_keys,
        tuple(warnings),
        tensor_sha256(file.state),
    )
    originals = [(parameter, parameter.data) for parameter, _ in plan.entries.values()]
    try:
        for parameter, new in plan.entries.values():
            parameter.data = new
        plan.entries.clear()
        yield loaded
    finally:
        for parameter, original in originals:
            parameter.data = original
