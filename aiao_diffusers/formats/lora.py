"""Apply a LoRA of any trainer to a live denoiser, strictly, and take it off again bit for bit.

A new LoRA format: its keys' module names go into `module_names`, their roles into `adapter_keys`, formulas into
`adapter_algebra`, fields of peft's config into `peft_config`, and what tells its file from others into `detect`; this module
then applies it.

Every format becomes new weights of named modules (`adapter_algebra`), swapped in and out, rather than adapter layers of
peft: one rule then covers LoRA, LoCon, LoHa, LoKr, DoRA, OFT and full differences, the norm of what really changed can be
measured, the denoiser keeps its module tree (sites, processors), and leaving means putting the original tensors back.

Upstream behaviour guarded here (diffusers 0.42, peft 0.21): native peft keys load nothing and say nothing; kohya
`dora_scale` and `lora_mid` are dropped; LoHa raises; keys of unknown modules are logged and ignored; a DoRA or
rank-stabilised adapter without its config gets another scale; alphas of FLUX's final layer are dropped. Here zero modules
or a zero change raises, as does a key of a known module that is not one of its factors, or a factor that cannot act; keys
of modules that the denoiser does not have are reported.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ..denoiser.hashes import tensor_sha256
from ..errors import LoraNotLoadedError, NotTestableError, SuspectError, WrongBaseError
from ..files.paths import inside
from ..files.safetensors_header import check_finite, stream
from ..files.strict_json import read_json
from ..files.text import short
from .adapter_algebra import Scaling, new_bias, new_weight, rank_of, scaling_of
from .adapter_keys import Group, Parsed, parse
from .artifact import Artifact, effect_of
from .bystanders import PEFT_FILE
from .detect import detect, detect_adapter, judge_header, only_adapter
from .families import base_hint, differ
from .module_names import EXPECTED_PREFIXES, Part
from .packing import packing_of
from .peft_config import alphas_in_metadata, config_in_metadata, scaling_from


__all__ = ["AdapterFile", "LoadedLora", "apply_lora", "check_adapter_fits", "read_adapter"]


MAX_UNUSED_SHARE = 0.5
"""Of a file's denoiser keys, the share that may find no module; any is told, more than this is another base's adapter."""


@dataclass(frozen=True)
class LoadedLora:
    """What an adapter really did to the denoiser.

    Args:
        kind: loha, lokr, glora, oft, boft, vera, ln_tuning, diff or dora where that is the algorithm; else the layout:
            diffusers, diffusers-old, peft, kohya.
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
class AdapterFile:
    """One adapter's tensors, and what the file or the config beside it says of their scale."""

    path: Path
    state: dict[str, torch.Tensor]
    scaling: Scaling | None
    dora: bool
    warnings: tuple[str, ...]
    alphas: Mapping[str, float]


def _pick(source: str | Path | Artifact, weight_name: str | None) -> Artifact:
    """The one adapter file that is meant."""
    if not isinstance(source, Artifact):
        found = detect_adapter(source) if weight_name is None else detect(source, weight_name)
    elif len(source.headers) > 1:
        found = only_adapter(source.path, [judge_header(header) for header in source.headers])
    else:
        found = source
    # peft's folder is an adapter by its config, whatever its file holds: the file decides what there is to apply.
    return judge_header(found.headers[0]) if len(found.headers) == 1 else found


def read_adapter(source: str | Path | Artifact, weight_name: str | None) -> AdapterFile:
    """Read the one adapter that is meant; its values are finite.

    Raises:
        LoraNotLoadedError, NotTestableError, SuspectError, UnsafeFileError: as `apply_lora`.
    """
    found = _pick(source, weight_name)
    if found.kind != "lora":
        whole = found.kind in ("pipeline", "denoiser", "single_file")
        fix = "it is a whole model: load it with load_denoiser" if whole else effect_of(found.kind)
        raise LoraNotLoadedError(
            f"{found.path.name!r} holds no LoRA of a denoiser but {found.kind} ({found.detail}): 0 modules would change; "
            f"{fix}."
        )
    (header,) = found.headers
    path = header.path
    reason = packing_of(header)
    if reason is not None:
        raise NotTestableError(f"{path.name!r} is an adapter stored quantised ({reason}): ask for it in plain floats")
    state = dict(stream(header))
    check_finite(state, path.name)
    warnings: tuple[str, ...] = ()
    config_path = path.parent / "adapter_config.json"
    native = any(key.startswith("base_model.model.") for key in state)
    config = config_in_metadata(header.metadata, path.name)
    if config is None and (native or path.name == PEFT_FILE):
        if config_path.is_file():
            config = read_json(inside(path.parent, config_path.name))
        else:
            warnings = (f"{path.name} has no adapter_config.json: alpha is unknown, taken equal to the rank",)
    scaling = None if config is None else scaling_from(config, path.name)
    alphas = alphas_in_metadata(header.metadata) if scaling is None else {}
    return AdapterFile(path, state, scaling, bool(config and config.get("use_dora")), warnings, alphas)


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


_OF_BIAS = ("up_bias", "diff_b", "new_b", "glora_C", "glora_D", "glora_E")
"""Starts of the roles that act on a module's bias."""


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
        touched = self.by_module.setdefault(module, [])
        if all(parameter is not known for known in touched):
            touched.append(parameter)


@dataclass(frozen=True)
class _Tensors:
    """The weight, or the bias, that a group's parts make one below the other."""

    plan: _Plan
    parts: Sequence[Part]
    parameters: Sequence[nn.Parameter]

    def current(self) -> torch.Tensor:
        rows = [
            self.plan.current(p).chunk(part.pieces)[part.piece]
            for part, p in zip(self.parts, self.parameters, strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def set(self, value: torch.Tensor) -> None:
        start = 0
        for part, parameter in zip(self.parts, self.parameters, strict=True):
            # A copy: the current value may be the live weight itself.
            whole = self.plan.current(parameter).clone()
            rows = whole.chunk(part.pieces)[part.piece]
            rows.copy_(value[start : start + len(rows)])
            start += len(rows)
            self.plan.add(part.module, parameter, whole)


def _plan(parsed: Parsed, denoiser: nn.Module, scaling: Scaling | None, scale: float) -> _Plan:
    plan, modules = _Plan(), _modules(denoiser)
    for group in parsed.groups:
        found = [modules[part.module] for part in group.parts]
        plain = [_plain(getattr(m, "weight", None), p.module) for m, p in zip(found, group.parts, strict=True)]
        weight = _Tensors(plan, group.parts, plain)
        current = weight.current()
        factors = {role: t.to(current.device, current.dtype) for role, t in group.factors.items()}
        ready = replace(group, factors=factors)
        factor, cayley = scaling_of(ready, scaling), scaling.cayley if scaling else None
        if "oft_R" in factors and cayley is None:
            raise NotTestableError(
                "an OFT of peft is read with its adapter_config.json, which says how its blocks turn"
            )
        if factors.keys() - {"diff_b"}:
            weight.set(new_weight(ready, current, factor, scale, cayley))
        acting = [role for role, t in factors.items() if role.startswith(_OF_BIAS) and bool(t.any())]
        if not acting:
            continue
        held = [getattr(module, "bias", None) for module in found]
        if any(bias is None for bias in held):
            raise NotTestableError(
                f"{short(group.keys[acting[0]])} gives {short(group.module)} a bias (lora_bias, diff_b), but this base has "
                f"none there to merge it into, and without it the rest is another adapter. Ask for the merged model"
            )
        bias = _Tensors(
            plan, group.parts, [_plain(b, f"{p.module}.bias") for b, p in zip(held, group.parts, strict=True)]
        )
        bias.set(new_bias(ready, bias.current(), current, factor, scale))
    return plan


def check_adapter_fits(shapes: Mapping[str, tuple[int, ...]], blank: nn.Module, what: str) -> None:
    """Whether an adapter's tensors find modules of a model and fit them, told by names and shapes alone.

    Args:
        shapes: of the file's tensors by key. blank: the model, without memory. what: the file, for messages.
    Raises:
        WrongBaseError: shapes that do not fit. LoraNotLoadedError: no tensor finds a module. SuspectError: incomplete
        factors.
    """
    try:
        parsed = parse({name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, blank)
        plan, modules = _Plan(), _modules(blank)
        for group in parsed.groups:
            weights = [getattr(modules[part.module], "weight", None) for part in group.parts]
            plain = [weight for weight in weights if isinstance(weight, nn.Parameter)]
            if len(plain) == len(group.parts) and group.factors.keys() - {"diff_b"}:
                new_weight(group, _Tensors(plan, group.parts, plain).current(), 1.0, 1.0)
    except WrongBaseError as error:
        raise WrongBaseError(f"{what}: {error}") from error
    except (RuntimeError, OverflowError) as error:  # what torch says of shapes that no memory could hold
        raise WrongBaseError(f"{what}: {short(str(error))}") from error
    if not parsed.groups:
        raise LoraNotLoadedError(f"{what}: none of its {len(shapes)} tensors finds a module of the base")


def _shapes(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _kind(groups: list[Group]) -> str:
    names = {g.algorithm for g in groups} - {"lora"}
    if not names and any({"magnitude", "dora_scale"} & g.factors.keys() for g in groups):
        names = {"dora"}
    return "+".join(sorted(names or {g.layout for g in groups}))


def _warn_of_alphas(told: Mapping[str, float], groups: Iterable[Group]) -> Iterator[str]:
    """Alphas that a file's metadata names, no stock loader applies and the ranks contradict."""
    ranks = {rank_of(group) for group in groups if "alpha" not in group.factors} - {None}
    for name, alpha in told.items():
        if ranks - {alpha}:
            yield f"the file's metadata says {short(name)} = {alpha:g}, which stock loaders pass over, and so do we"


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


def _judge(
    file: AdapterFile, parsed: Parsed, plan: _Plan, scale: float, base: Mapping[str, tuple[int, ...]]
) -> LoadedLora:
    """What the plan amounts to; raises where it is nothing, half an adapter, or that of another base."""
    modules, delta_norm, before = _measure(plan)
    unused, shapes = tuple(parsed.unused), _shapes(file.state)
    hint = base_hint(shapes, base)
    if modules == 0 or not delta_norm > 0:
        first = next(iter(file.state), None)
        raise LoraNotLoadedError(
            f"{file.path.name!r} changed 0 modules: {len(parsed.groups)} found in the denoiser, norm of the change "
            f"{delta_norm:g} at scale {scale:g}; {len(unused)} of {len(file.state)} keys unused, "
            f"{parsed.text_encoder_keys} of text encoders (first key {short(first)}, expected prefixes "
            f"{', '.join(EXPECTED_PREFIXES)}). A verdict would describe the base, not the LoRA."
            f"{hint} Check that the file belongs to this base, or ask for the merged model."
        )
    bare = [group.module for group in parsed.groups if group.algorithm == "lora" and "magnitude" not in group.factors]
    if file.dora and bare:
        raise NotTestableError(
            f"{file.path.name!r} is a DoRA by its config, but {len(bare)} modules have no magnitude, first "
            f"{short(bare[0])}: at another norm it is another adapter. Ask for the merged model"
        )
    warnings = [*file.warnings, *_warn_of_alphas(file.alphas, parsed.groups)]
    if unused:
        aimed = len(file.state) - parsed.text_encoder_keys
        told = f"{len(unused)} of {aimed} keys ({len(unused) / aimed:.0%}) found no module in the denoiser, first {short(unused[0])}"
        if len(unused) > MAX_UNUSED_SHARE * aimed or differ(shapes, base):
            raise WrongBaseError(f"{file.path.name!r}: {told}; what is left is not the adapter that people run.{hint}")
        warnings.append(told)
    if modules < len(plan.by_module):
        warnings.append(f"{len(plan.by_module) - modules} of {len(plan.by_module)} modules did not change at all")
    return LoadedLora(
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


@contextmanager
def apply_lora(
    denoiser: nn.Module, source: str | Path | Artifact, scale: float = 1.0, weight_name: str | None = None
) -> Iterator[LoadedLora]:
    """Run the body with a LoRA added to the denoiser's weights; afterwards the original tensors are back.

    Uses nest: the inner adapter adds to the outer, and each block undoes its own. DoRA alone depends on the order, since
    its norms are those of the weights it meets. The tensors are swapped, not overwritten, so restoring is exact whatever
    the body does to the weights; peak memory is one extra copy of the changed modules.

    Args:
        denoiser: a diffusers U-Net or transformer on its device, float weights of any precision.
        source: a `.safetensors` file, a folder with one adapter in it (peft's or any other), or what `detect` made of one.
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
    file = read_adapter(source, weight_name)
    # Under a caller's inference_mode the new tensors would be inference tensors, which a parameter cannot hold.
    with torch.inference_mode(False), torch.no_grad():
        parsed = parse(file.state, denoiser)
        base = _shapes(denoiser.state_dict())
        try:
            plan = _plan(parsed, denoiser, file.scaling, scale)
        except WrongBaseError as error:
            raise WrongBaseError(f"{file.path.name!r}: {error}.{base_hint(_shapes(file.state), base)}") from error
        loaded = _judge(file, parsed, plan, scale, base)
    originals = [(parameter, parameter.data) for parameter, _ in plan.entries.values()]
    try:
        for parameter, new in plan.entries.values():
            parameter.data = new
        plan.entries.clear()
        yield loaded
    finally:
        for parameter, original in originals:
            parameter.data = original
