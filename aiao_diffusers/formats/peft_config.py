"""peft's adapter config, from its own file or a safetensors header: the fields that decide what an adapter does.

Fields that change the algebra are refused rather than ignored; code and class names in it are never followed.
"""

import re
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from ..errors import NotTestableError, SuspectError, UnsafeFileError
from ..files.strict_json import parse_json
from ..files.text import short
from .adapter_algebra import Scaling
from .rotations import cayley_of
from .unread_kinds import NOT_READ, name_of_peft_type


_METADATA_KEY = "lora_adapter_metadata"
_SCALED_TYPES = ("LORA", "LOHA", "LOKR")
_PEFT_TYPES = (*_SCALED_TYPES, "OFT", "BOFT", "GLORA", "VERA", "LN_TUNING")
_ALPHA = re.compile(r"(?:ss_)?(?:network_|lora_|linear_)?alphas?")
_DEPTH = 4
_UNSUPPORTED_FIELDS = (
    "fan_in_fan_out",
    "modules_to_save",
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


def _number(config: Mapping[str, Any], name: str, where: str) -> float | None:
    value = config.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise SuspectError(f"{where}: {name} is {short(value)}, expected a number")
    return value


def scaling_from(config: Mapping[str, Any], where: str) -> Scaling:
    """peft's config fields that decide the scale; fields that change the algebra are refused, code is never imported."""
    kind = config.get("peft_type", "LORA")
    if kind not in _PEFT_TYPES:
        named = name_of_peft_type(kind) or f"peft_type {short(kind)}, which is not one of {', '.join(_PEFT_TYPES)}"
        raise NotTestableError(f"{where} {NOT_READ}: {named}. Ask for the merged model")
    odd = [name for name in _UNSUPPORTED_FIELDS if config.get(name)]
    if odd:
        raise NotTestableError(f"{where}: {', '.join(odd)} changes how the adapter acts; merge it with peft first")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_INITS):
        raise NotTestableError(
            f"{where}: init_lora_weights={start!r} trained on an altered base. Ask for a converted adapter "
            f"(peft: save_pretrained(..., path_initial_model_for_weight_conversion=...)) or a merged model"
        )
    if kind not in _SCALED_TYPES:
        return Scaling(cayley=cayley_of(config, where) if kind == "OFT" else None)
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
    # A field that peft left out has peft's default, which is 8 whatever the rank.
    alpha = 8.0 if alpha is None else alpha
    return Scaling(
        None if r is None else int(r),
        alpha,
        patterns["rank_pattern"],
        patterns["alpha_pattern"],
        bool(config.get("use_rslora")),
    )


def config_in_metadata(metadata: Mapping[str, str], where: str) -> dict[str, Any] | None:
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


def alphas_in_metadata(metadata: Mapping[str, str]) -> dict[str, float]:
    """Alphas that trainers note in a file's header beside its tensors: name, dotted where it lies within JSON -> value."""
    return dict(_find_alphas(metadata, "", _DEPTH))


def _find_alphas(held: Mapping[str, Any], path: str, depth: int) -> Iterator[tuple[str, float]]:
    for key, value in held.items():
        if key == _METADATA_KEY or depth == 0:
            continue
        if isinstance(value, str) and value.lstrip().startswith("{"):
            try:
                value = parse_json(value.encode(), key)
            except UnsafeFileError:
                continue  # a note that nobody reads
        if isinstance(value, Mapping):
            yield from _find_alphas(value, f"{path}{key}.", depth - 1)
        elif _ALPHA.fullmatch(key):
            try:
                alpha = float(value)
            except (TypeError, ValueError, OverflowError):
                continue
            if isfinite(alpha):
                yield f"{path}{key}", alpha
