"""Where a denoiser can carry a constant direction, told by its modules alone: no weight is read, a blank model serves.

A site is one activation that linear layers take, and that can be shifted by a constant without any change of the output:
what comes before it has a bias to shift, and what takes it can absorb a constant.
"""

from dataclasses import dataclass
from typing import Any

from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from ..denoiser.sites import unwrap
from .modulated import find_modulated, is_modulated
from .site import CarrierSite, Found, Kind, Part, bias_fails


@dataclass(frozen=True)
class CarrierPlan:
    """Sites in the order of the model's modules, and places left out with the reason for each."""

    sites: tuple[CarrierSite, ...]
    left_out: dict[str, str]


def plan_carrier(denoiser: nn.Module) -> CarrierPlan:
    """The sites of a denoiser that can carry a direction exactly.

    Args:
        denoiser (`nn.Module`): on any device, the meta device included.
    Returns:
        `CarrierPlan`: without sites where no block is of a known kind.
    """
    sites: list[CarrierSite] = []
    left_out: dict[str, str] = {}
    modules = {name.replace(".base_layer", ""): m for name, m in unwrap(denoiser).named_modules()}
    blocks = [
        name for name, m in modules.items() if name and (isinstance(m, BasicTransformerBlock) or is_modulated(m))
    ]
    inner = tuple(f"{name}." for name in blocks)
    for name, module in modules.items():
        if is_modulated(module):
            found = find_modulated(name, module)
        elif isinstance(module, Transformer2DModel):
            found = _of_model(name, module)
        elif isinstance(module, BasicTransformerBlock):
            found = _of_block(name, module)
        elif isinstance(module, Attention) and not name.startswith(inner):
            found = _of_attention(name, f"{name}.group_norm", module, module.group_norm)
        else:
            continue
        for at, site in found:
            if isinstance(site, str):
                left_out[at] = site
            else:
                sites.append(site)
    return CarrierPlan(tuple(sites), left_out)


def _of_model(name: str, model: Any) -> Found:
    """A 2-D transformer's own two sites: what enters it, and what leaves its last block."""
    if not model.is_input_continuous:
        return
    if reason := _norm_fails(model.norm) or bias_fails(model.proj_in, "proj_in"):
        yield f"{name}.norm", reason
    else:
        yield _site(f"{name}.norm", model.norm.weight.shape[0], "projection_in", f"{name}.norm", f"{name}.proj_in")
    last = f"{name}.transformer_blocks.{len(model.transformer_blocks) - 1}.ff.net.2"
    block: Any = model.transformer_blocks[-1]
    final, at = _layer_of(block, "ff.net.2"), f"{name}.proj_out"
    if not isinstance(block, BasicTransformerBlock):
        yield at, f"the last block is no known one but {type(block).__name__}"
    elif block.norm_type != "layer_norm":
        yield at, "a gate scales what the last feed-forward puts out"
    elif reason := bias_fails(final, "ff.net.2") or bias_fails(model.proj_out, "proj_out"):
        yield at, reason
    else:
        yield _site(at, model.proj_out.weight.shape[1], "projection_out", last, at)


def _of_block(name: str, block: Any) -> Found:
    if block.norm_type != "layer_norm" or block.pos_embed is not None:
        what = "positions are added" if block.pos_embed is not None else f"its norms are of type {block.norm_type}"
        yield name, f"{what}: a constant behind them is not absorbed exactly"
        return
    if block.only_cross_attention:
        yield f"{name}.norm1", "its first attention reads text"
    else:
        yield from _of_attention(f"{name}.attn1", f"{name}.norm1", block.attn1, block.norm1)
    if block.attn2 is not None:
        at = f"{name}.norm2"
        if block.double_self_attention:
            yield from _of_attention(f"{name}.attn2", at, block.attn2, block.norm2)
        elif reason := _norm_fails(block.norm2) or _attention_fails(block.attn2):
            yield at, reason
        else:
            yield _site(at, block.norm2.weight.shape[0], "query", at, f"{name}.attn2.to_q")
    first = _layer_of(block, "ff.net.0.proj")
    if reason := _norm_fails(block.norm3) or bias_fails(first, "ff.net.0.proj"):
        yield f"{name}.norm3", reason
    else:
        at = f"{name}.norm3"
        yield _site(at, block.norm3.weight.shape[0], "feed_forward", at, f"{name}.ff.net.0.proj")


def _of_attention(name: str, at: str, attention: Any, norm: Any) -> Found:
    """A self-attention behind a norm: what enters it, and what its output layer takes."""
    out = _layer_of(attention, "to_out.0")
    reason = _norm_fails(norm) or _attention_fails(attention) or bias_fails(out, "to_out.0")
    if reason is None and attention.norm_k is not None:
        reason = "keys are normed: a constant in them is not ignored"
    if reason is None and attention.added_kv_proj_dim is not None:
        reason = "text has values beside the image's: a constant in those is not the same at every place"
    if reason is None and isinstance(norm, nn.GroupNorm):  # whose outputs lie in no plane
        reason = bias_fails(attention.to_q, "to_q") or bias_fails(attention.to_v, "to_v")
    if reason is not None:
        yield at, reason
        return
    yield _site(at, norm.weight.shape[0], "attention", at, f"{name}.to_q", f"{name}.to_v")
    # A value's constant comes through any attention unchanged, for its weights add up to 1.
    at = f"{name}.to_out.0"
    yield _site(at, out.weight.shape[1], "attention_output", f"{name}.to_v", at)


def _site(name: str, width: int, kind: Kind, shifted: str, *layers: str) -> tuple[str, CarrierSite]:
    absorbing = () if kind in ("attention", "query") else layers
    return name, CarrierSite(name, width, kind, (Part(f"{shifted}.bias"),), layers, absorbing)


def _norm_fails(norm: Any) -> str | None:
    if norm is None:
        return "no norm of its own"
    if not isinstance(norm, nn.LayerNorm | nn.GroupNorm):
        return f"no layer norm and no group norm but {type(norm).__name__}"
    return "the norm has no bias" if norm.weight is None or norm.bias is None else None


def _layer_of(module: Any, path: str) -> Any:
    """The layer below a module; None where somebody put another kind of module in its place."""
    for step in path.split("."):
        module = dict(module.named_children()).get(step) if isinstance(module, nn.Module) else None
    return module


def _attention_fails(attention: Any) -> str | None:
    if not isinstance(attention, Attention):
        return f"no attention that is known but {type(attention).__name__}"
    for name in ("to_q", "to_v"):
        if getattr(getattr(attention, name), "weight", None) is None:
            return f"{name} is {type(getattr(attention, name)).__name__}, which has no weight"
    if attention.spatial_norm is not None or getattr(attention, "fused_projections", False):
        return "the attention has a norm by place, or fused projections"
    return "queries are normed" if attention.norm_q is not None else None
