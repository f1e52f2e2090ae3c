"""Which module a kohya key, or any trainer's, names: diffusers, kohya's underscores, original LDM, FLUX, SD 3.

All are derived from the denoiser's own modules and looked up; a key is never rewritten by substitution, so an unknown
one stays visibly unused. An original name may stand for several modules, or for the rows of one in another order: a
fused `qkv`, or the shift and scale of a final norm that diffusers keeps as scale and shift.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import nn

from ..errors import SuspectError
from ..files.text import short


EXPECTED_PREFIXES = ("unet.", "transformer.", "base_model.model.", "lora_unet_", "lycoris_", "diffusion_model.")
_KOHYA = ("lora_unet_", "lora_transformer_", "lycoris_unet_", "lycoris_", "oft_unet_")
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""What torch.compile, FSDP and activation checkpointing put around a module, at any depth."""
_HEADS = re.compile(
    r"(?:(?:base_model\.model|model\.diffusion_model|diffusion_model|module|unet|transformer|denoiser)\.)+"
)
"""What stands before a denoiser's own names, stacked at will; no module of a denoiser is called like one of them."""


@dataclass(frozen=True)
class Part:
    """Rows of a module's weight: the `piece`-th of `pieces` equal chunks, all of them by default."""

    module: str
    piece: int = 0
    pieces: int = 1


@dataclass(frozen=True)
class Target:
    """What an adapter's key names: the weight made of `parts`, one below the other."""

    name: str
    parts: tuple[Part, ...]


Index = Mapping[str, Target | None]
"""Spelling -> target; None where two modules share a spelling."""


def module_index(denoiser: nn.Module) -> Index:
    """Every spelling of every module with a weight."""
    index: dict[str, Target | None] = {}
    names = {name.replace(".base_layer", "") for name, m in denoiser.named_modules() if hasattr(m, "weight") and name}
    targets = {name: Target(name, (Part(name),)) for name in sorted(names)}
    spelled = [(name, target) for name, target in targets.items()]
    spelled += [(spelling, targets[name]) for name, spelling in ldm_names(names).items()]
    fused: dict[tuple[Part, ...], Target] = {}
    spelled += [(spelling, targets[name]) for name, spelling in _renamed(names).items()]
    for native, parts in (*_flux(names), *_sd3(names), *_fused(names)):
        # A family's relative has other modules under the same native names; those are left unknown.
        if all(part.module in names for part in parts):
            # By its rows: underscores make one name of two that families spell apart.
            spelled.append(
                (
                    native,
                    targets[parts[0].module] if len(parts) == 1 else fused.setdefault(parts, Target(native, parts)),
                )
            )
    for spelling, target in spelled:
        for form in {spelling, spelling.replace(".", "_")}:
            index[form] = target if index.get(form, target) == target else None
    return index


def ldm_names(names: Iterable[str]) -> dict[str, str]:
    """diffusers name -> original LDM name, for the modules of a conditional U-Net.

    LDM numbers its blocks through: `input_blocks.0` is conv_in, then per level the resnets (with their attention) and
    one downsampler; `output_blocks` likewise, where the upsampler shares the level's last number.
    """
    names = list(names)
    fixed = {
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "time_embedding.cond_proj": "time_embed.cond_proj",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
    }
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    part = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
    found = [(name, m) for name in names if (m := part.fullmatch(name))]

    def per_level(side: str) -> int:
        counts = {int(m[4]) + 1 for _, m in found if m[1] == side and m[3] == "resnets"}
        return max(counts, default=0)

    result = {name: fixed[name] for name in names if name in fixed}
    down, up = per_level("down") + 1, per_level("up")
    with_attention = {(m[1], m[2]) for _, m in found if m[3] == "attentions"}
    for name, m in found:
        side, level, what, number, rest = m[1], int(m[2] or 0), m[3], int(m[4]), m[5]
        if what == "resnets":
            rest = inner.get(rest, rest)
        if side == "mid":
            result[name] = f"middle_block.{2 * number if what == 'resnets' else 2 * number + 1}.{rest}"
        elif what == "downsamplers":
            result[name] = f"input_blocks.{(level + 1) * down}.0.op"
        elif what == "upsamplers":
            place = 2 if (side, m[2]) in with_attention else 1
            result[name] = f"output_blocks.{level * up + up - 1}.{place}.{rest}"
        else:
            block = (
                f"input_blocks.{level * down + number + 1}"
                if side == "down"
                else f"output_blocks.{level * up + number}"
            )
            result[name] = f"{block}.{0 if what == 'resnets' else 1}.{rest}"
    return result


_QKV = ("to_q", "to_k", "to_v")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
_EMBEDDERS = {"time_in": "timestep_embedder", "vector_in": "text_embedder", "guidance_in": "guidance_embedder"}


def _numbers(names: Iterable[str], stem: str) -> list[int]:
    return sorted({int(m[1]) for name in names if (m := re.match(rf"{stem}\.(\d+)\.", name))})


def _attention(block: str, modules: Iterable[str], attention: str = "attn") -> tuple[Part, ...]:
    return tuple(Part(f"{block}.{attention}.{module}") for module in modules)


def _swap(module: str) -> tuple[Part, ...]:
    """diffusers keeps (scale, shift) where the original kept (shift, scale)."""
    return Part(module, 1, 2), Part(module, 0, 2)


def _flux(names: set[str]) -> list[tuple[str, tuple[Part, ...]]]:
    """FLUX's original module names, and those of the XLabs trainer (`processor.qkv_lora1`, without its `processor`)."""
    singles = _numbers(names, "single_transformer_blocks")
    if not singles:
        return []
    found: list[tuple[str, tuple[Part, ...]]] = []
    for n in _numbers(names, "transformer_blocks"):
        native, block = f"double_blocks.{n}", f"transformer_blocks.{n}"
        streams = (("img", "", "1", _QKV, "to_out.0", ""), ("txt", "_context", "2", _ADDED, "to_add_out", "added_"))
        for side, suffix, number, qkv, out, added in streams:
            for spelling in (f"{side}_attn.qkv", f"qkv{number}"):
                found.append((f"{native}.{spelling}", _attention(block, qkv)))
            for spelling in (f"{side}_attn.proj", f"proj{number}"):
                found.append((f"{native}.{spelling}", _attention(block, [out])))
            for letter, word in (("q", "query"), ("k", "key")):
                norm = (Part(f"{block}.attn.norm_{added}{letter}"),)
                found.append((f"{native}.{side}_attn.norm.{word}_norm", norm))
            found += [
                (f"{native}.{side}_mlp.0", (Part(f"{block}.ff{suffix}.net.0.proj"),)),
                (f"{native}.{side}_mlp.2", (Part(f"{block}.ff{suffix}.net.2"),)),
                (f"{native}.{side}_mod.lin", (Part(f"{block}.norm1{suffix}.linear"),)),
            ]
    for n in singles:
        native, block = f"single_blocks.{n}", f"single_transformer_blocks.{n}"
        found += [
            (f"{native}.linear1", (*_attention(block, _QKV), Part(f"{block}.proj_mlp"))),
            (f"{native}.qkv", _attention(block, _QKV)),
            (f"{native}.linear2", (Part(f"{block}.proj_out"),)),
            (f"{native}.proj", (Part(f"{block}.proj_out"),)),
            (f"{native}.modulation.lin", (Part(f"{block}.norm.linear"),)),
        ]
    for native, embedder in _EMBEDDERS.items():
        for layer, place in (("in_layer", 1), ("out_layer", 2)):
            found.append((f"{native}.{layer}", (Part(f"time_text_embed.{embedder}.linear_{place}"),)))
    found += [("img_in", (Part("x_embedder"),)), ("txt_in", (Part("context_embedder"),))]
    return [*found, *_final_layer()]


def _final_layer() -> list[tuple[str, tuple[Part, ...]]]:
    return [
        ("final_layer.linear", (Part("proj_out"),)),
        ("final_layer.adaLN_modulation.1", _swap("norm_out.linear")),
    ]


def _sd3(names: set[str]) -> list[tuple[str, tuple[Part, ...]]]:
    """Stable Diffusion 3's original module names."""
    blocks = [n for n in _numbers(names, "transformer_blocks") if f"transformer_blocks.{n}.attn.add_k_proj" in names]
    if not blocks or _numbers(names, "single_transformer_blocks"):
        return []
    found: list[tuple[str, tuple[Part, ...]]] = []
    for n in blocks:
        block = f"transformer_blocks.{n}"
        image, text = f"joint_blocks.{n}.x_block", f"joint_blocks.{n}.context_block"
        # The last block ends the text stream: its norm is of the final kind.
        last = f"{block}.attn.to_add_out" not in names
        context = f"{block}.norm1_context.linear"
        found += [
            (f"{image}.attn.qkv", _attention(block, _QKV)),
            (f"{image}.attn.proj", _attention(block, ["to_out.0"])),
            (f"{image}.attn2.qkv", _attention(block, _QKV, "attn2")),
            (f"{image}.attn2.proj", _attention(block, ["to_out.0"], "attn2")),
            (f"{image}.adaLN_modulation.1", (Part(f"{block}.norm1.linear"),)),
            (f"{text}.attn.qkv", _attention(block, _ADDED)),
            (f"{text}.attn.proj", _attention(block, ["to_add_out"])),
            (f"{text}.adaLN_modulation.1", _swap(context) if last else (Part(context),)),
        ]
        for native, suffix in ((image, ""), (text, "_context")):
            found += [
                (f"{native}.mlp.fc1", (Part(f"{block}.ff{suffix}.net.0.proj"),)),
                (f"{native}.mlp.fc2", (Part(f"{block}.ff{suffix}.net.2"),)),
            ]
    for native, embedder in (("t_embedder", "timestep_embedder"), ("y_embedder", "text_embedder")):
        for layer, place in ((0, 1), (2, 2)):
            found.append((f"{native}.mlp.{layer}", (Part(f"time_text_embed.{embedder}.linear_{place}"),)))
    return [*found, ("x_embedder.proj", (Part("pos_embed.proj"),)), *_final_layer()]


_HUNYUAN = "context_embedder.token_refiner.refiner_blocks.0.attn.to_q"
_RENAMED = (
    (
        "condition_embedder.time_proj",
        (
            ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
            ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
            ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
            ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
            ("condition_embedder.time_proj", "time_projection.1"),
            (".attn1.to_out.0", ".self_attn.o"),
            (".attn2.to_out.0", ".cross_attn.o"),
            (".attn1.to_", ".self_attn."),
            (".attn2.to_", ".cross_attn."),
            (".attn2.add_k_proj", ".cross_attn.k_img"),
            (".attn2.add_v_proj", ".cross_attn.v_img"),
            (".ffn.net.0.proj", ".ffn.0"),
            (".ffn.net.2", ".ffn.2"),
            ("proj_out", "head.head"),
        ),
    ),
    ("all_x_embedder.2-1", ((".attention.to_out.0", ".attention.out"), ("all_x_embedder.2-1", "x_embedder"))),
    (
        "time_caption_embed.caption_embedder.1",
        (
            (".attn.to_out.0", ".attention.out"),
            (".feed_forward.linear_", ".feed_forward.w"),
            (".norm1.linear", ".adaLN_modulation.1"),
            ("time_caption_embed.caption_embedder", "cap_embedder"),
            ("time_caption_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
            ("time_caption_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
        ),
    ),
    (
        _HUNYUAN,
        (
            ("single_transformer_blocks", "single_blocks"),
            ("transformer_blocks", "double_blocks"),
            (".norm1.linear", ".img_mod.linear"),
            (".norm1_context.linear", ".txt_mod.linear"),
            (".norm.linear", ".modulation.linear"),
            (".attn.to_out.0", ".img_attn_proj"),
            (".attn.to_add_out", ".txt_attn_proj"),
            (".ff.net.0.proj", ".img_mlp.fc1"),
            (".ff.net.2", ".img_mlp.fc2"),
            (".ff_context.net.0.proj", ".txt_mlp.fc1"),
            (".ff_context.net.2", ".txt_mlp.fc2"),
        ),
    ),
)
"""A module that only one family has (Wan, Z-Image, Lumina 2, HunyuanVideo) -> diffusers' parts of its names, and the original ones."""


def _renamed(names: set[str]) -> dict[str, str]:
    """Module -> original name, where a family's original names differ part by part."""
    found = {}
    for mark, pairs in _RENAMED:
        for name in names if mark in names else ():
            spelling = name
            for ours, theirs in pairs:
                spelling = spelling.replace(ours, theirs)
            if spelling != name:
                found[name] = spelling
    return found


def _fused(names: set[str]) -> list[tuple[str, tuple[Part, ...]]]:
    """The fused projections of Z-Image and Lumina 2 (`attention.qkv`) and of HunyuanVideo (`img_attn_qkv`)."""
    found: list[tuple[str, tuple[Part, ...]]] = []
    for name in names:
        stem, _, last = name.rpartition(".")
        if last != "to_q":
            continue
        block, _, attention = stem.rpartition(".")
        if re.fullmatch(r"(?:layers|noise_refiner|context_refiner)\.\d+", block) and attention in (
            "attn",
            "attention",
        ):
            found.append((f"{block}.attention.qkv", _attention(block, _QKV, attention)))
        elif _HUNYUAN in names and block.startswith("transformer_blocks.") and attention == "attn":
            native = block.replace("transformer_blocks", "double_blocks")
            found += [
                (f"{native}.img_attn_qkv", _attention(block, _QKV)),
                (f"{native}.txt_attn_qkv", _attention(block, _ADDED)),
            ]
    return found


def strip_wrappers(name: str) -> str:
    """A tensor's or module's name without what wraps the denoiser: `_orig_mod.`, `module.`, `unet.`, stacked in any order.

    Of whole models as of adapters; in time linear in the name, which may be a stranger's.
    """
    name = _WRAPPERS.sub("", name)
    head = _HEADS.match(name)
    return name[head.end() :] if head else name


def locate(name: str, index: Index) -> tuple[Target | None, str]:
    """Target of a key without its role, and the layout its prefix speaks of.

    Raises:
        SuspectError: the name could mean two modules.
    """
    for prefix in _KOHYA:
        if name.startswith(prefix):
            # Converters leave a dot where they do not know the role, and trainers the name of a compiled module.
            stem = name.removeprefix(prefix).replace(".", "_").replace("_orig_mod_", "")
            return _look_up(stem, index), "sd-scripts" if prefix == "oft_unet_" else "kohya"
    layout = "peft" if "base_model.model." in name else "diffusers"
    name = strip_wrappers(name)
    if ".processor." in name:
        layout = "xlabs" if name.startswith(("double_blocks.", "single_blocks.")) else "diffusers-old"
        name = name.replace(".processor.", ".")
    return _look_up(name, index), layout


def named_in(key: str, index: Index) -> Target | None:
    """The target that an unknown key speaks of: the longest dotted head of it that names one."""
    while "." in key:
        key = key.rpartition(".")[0]
        target, _ = locate(key, index)
        if target is not None:
            return target
    return None


def _look_up(name: str, index: Index) -> Target | None:
    if name in index and index[name] is None:
        raise SuspectError(f"{short(name)} could mean two modules of this denoiser")
    # Before 0.15 diffusers wrote `to_out` for the linear layer `to_out.0`.
    return index.get(name) or (index.get(f"{name}.0") if name.endswith(".to_out") else None)
