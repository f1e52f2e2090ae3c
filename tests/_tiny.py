"""A miniature conditional U-Net and writers of one low-rank change in every adapter spelling."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers import LatentData
from aiao_diffusers.bench.context import AttackContext


ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0"
LINEAR = (
    f"{ATTENTION}.attn1.to_q",
    f"{ATTENTION}.attn1.to_out.0",
    f"{ATTENTION}.attn2.to_k",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_v",
)
CONV = ("down_blocks.0.resnets.0.conv1", "up_blocks.0.resnets.1.conv_shortcut", "down_blocks.0.downsamplers.0.conv")
BOTH_LEVELS = (LINEAR[0], CONV[0])
OTHER = ("mid_block.resnets.1.time_emb_proj", "up_blocks.0.upsamplers.0.conv", "conv_in", "time_embedding.linear_1")


def tiny_unet(seed: int = 0, cross: int = 12) -> UNet2DConditionModel:
    """About 50k parameters, two levels, so that every kind of block name of SD occurs."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=cross,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


def widened(unet: nn.Module, **changes: object) -> UNet2DConditionModel:
    """`unet` under a changed config; what the change adds is random, but for new channels, which are zero."""
    config = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    wide = UNet2DConditionModel.from_config({**config, **changes}).eval()
    state = wide.state_dict() | unet.state_dict()
    state["conv_in.weight"] = torch.zeros_like(wide.conv_in.weight)
    state["conv_in.weight"][:, :4] = unet.conv_in.weight.data
    wide.load_state_dict(state)
    return wide


def tiny_context(folder: Path) -> AttackContext:
    """A benchmark's context around `tiny_unet(0)`: twelve random latents for owner and attacker alike."""
    scheduler = DDIMScheduler(clip_sample=False, steps_offset=1)
    pipe = StableDiffusionPipeline(
        None, None, None, tiny_unet(0), scheduler, None, None, requires_safety_checker=False
    )
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(12, 4, 8, 8, generator=generator), torch.randn(12, 5, 12, generator=generator)
    data = LatentData(latents, {"encoder_hidden_states": text})
    return AttackContext(pipe, data, data, seed=0, folder=folder)


def tiny_unconditional(**changes: Any) -> UNet2DModel:
    """A `UNet2DModel` of pixels with attention on its finest level; `changes` replace fields of its config."""
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    }
    return UNet2DModel(**(config | changes))


def run(unet: nn.Module) -> torch.Tensor:
    """One forward on fixed inputs, shape `(2, 4, 8, 8)`."""
    parameter = next(unet.parameters())
    generator = torch.Generator().manual_seed(7)
    sample = torch.randn(2, 4, 8, 8, generator=generator).to(parameter.dtype)
    text = torch.randn(2, 5, 12, generator=generator).to(parameter.dtype)
    with torch.no_grad():
        return unet(sample, torch.tensor([10, 500]), text).sample


def scaled(layer: str, factor: float, seed: int = 0) -> UNet2DConditionModel:
    """A copy of the miniature with one layer's parameters multiplied: its relative change is `factor - 1`."""
    unet = tiny_unet(seed)
    for parameter in unet.get_submodule(layer).parameters():
        parameter.data *= factor
    return unet


def of_both_kinds(kind: str) -> tuple[nn.Module, torch.Tensor, dict[str, torch.Tensor]]:
    """A miniature (`text` or `unconditional`), a sample for it, and the keywords of its call."""
    if kind == "text":
        return tiny_unet(cross=8), torch.randn(2, 4, 8, 8), {"encoder_hidden_states": torch.randn(2, 3, 8)}
    unet = tiny_unconditional(block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=8).eval()
    return unet, torch.randn(2, 3, 8, 8), {}


def predict(unet: nn.Module, sample: torch.Tensor, keywords: dict[str, torch.Tensor]) -> torch.Tensor:
    """One forward of `of_both_kinds`, at two times."""
    with torch.no_grad():
        return unet(sample, torch.tensor([5, 500]), **keywords).sample


def factors(unet: nn.Module, modules: tuple[str, ...], rank: int, seed: int = 1) -> dict[str, tuple]:
    """Module -> (down, up), random; for convolutions down carries the kernel."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name in modules:
        out, inner, *kernel = unet.get_submodule(name).weight.shape
        down = torch.randn(rank, inner, *kernel, generator=generator) * 0.3
        up = torch.randn(out, rank, *[1] * len(kernel), generator=generator) * 0.3
        result[name] = (down, up)
    return result


def patch(unet: nn.Module, made: dict[str, tuple], factor: float) -> None:
    """The oracle: add `factor * up @ down` to the weights by hand."""
    for name, (down, up) in made.items():
        weight = unet.get_submodule(name).weight.data
        delta = torch.einsum("or,ri->oi", up.flatten(1).double(), down.flatten(1).double()).reshape(weight.shape)
        weight.copy_((weight.double() + factor * delta).to(weight.dtype))


def _kohya(made: dict[str, tuple], alpha: float, rename: Callable[[str], str] = str) -> dict[str, torch.Tensor]:
    state = {}
    for name, (down, up) in made.items():
        stem = "lora_unet_" + rename(name).replace(".", "_")
        state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.alpha": torch.tensor(alpha)}
    return state


LDM_NAMES = {
    "down_blocks.0.resnets.0.conv1": "input_blocks.1.0.in_layers.2",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1.time_emb_proj": "middle_block.2.emb_layers.1",
    "up_blocks.0.resnets.1.conv_shortcut": "output_blocks.1.0.skip_connection",
    "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
}


def ldm(name: str) -> str:
    """LDM name of a module of `tiny_unet`, from a table written by hand."""
    start = max((k for k in LDM_NAMES if name.startswith(k)), key=len)
    return LDM_NAMES[start] + name[len(start) :]


def write(path: Path, fmt: str, made: dict[str, tuple], alpha: float, dtype: torch.dtype = torch.float32) -> Path:
    """The factors as one file or folder of format `fmt`; returns what a user would pass."""
    rank = next(iter(made.values()))[0].shape[0]
    path.mkdir(parents=True, exist_ok=True)
    file, metadata = path / f"{fmt}.safetensors", {"format": "pt"}
    state: dict[str, torch.Tensor] = {}
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha}
    if fmt in ("kohya", "kohya-ldm"):
        state = _kohya(made, alpha, ldm if fmt == "kohya-ldm" else str)
        state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(2, 2)
    else:
        for name, (down, up) in made.items():
            if fmt == "peft":
                stem, a, b = f"base_model.model.{name}", ".lora_A.weight", ".lora_B.weight"
            elif fmt == "diffusers-metadata":
                stem, a, b = f"unet.{name}", ".lora_A.weight", ".lora_B.weight"
            elif fmt == "diffusers-down-up":
                stem, a, b = f"unet.{name}", ".lora.down.weight", ".lora.up.weight"
                state[f"{stem}.alpha"] = torch.tensor(alpha)
            elif fmt == "diffusers-lora-down":
                stem, a, b = f"unet.{name}", ".lora_down.weight", ".lora_up.weight"
                state[f"{stem}.alpha"] = torch.tensor(alpha)
            elif fmt == "diffusers-old":
                head, _, tail = name.rpartition(".to_")
                stem = f"unet.{head}.processor.to_{tail.removesuffix('.0')}"
                a, b = "_lora.down.weight", "_lora.up.weight"
                up = up * (alpha / rank)  # this layout had no alpha
            elif fmt == "comfy-ldm":
                stem, a, b = f"diffusion_model.{ldm(name)}", ".lora_A.weight", ".lora_B.weight"
                state[f"{stem}.alpha"] = torch.tensor(alpha)
            else:
                raise ValueError(fmt)
            state |= {stem + a: down, stem + b: up}
    if fmt == "peft":
        file = path / "adapter_model.safetensors"
        (path / "adapter_config.json").write_text(json.dumps(config))
    if fmt == "diffusers-metadata":
        metadata["lora_adapter_metadata"] = json.dumps({f"unet.{k}": v for k, v in config.items()})
    save_file({k: v.to(dtype).contiguous().clone() for k, v in state.items()}, file, metadata)
    return path if fmt == "peft" else file


def ldm_state(unet: nn.Module) -> dict[str, torch.Tensor]:
    """The whole U-Net in original LDM keys, renamed by the table and the resnets' inner names."""
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    starts = {
        "down_blocks.0.resnets.0": "input_blocks.1.0",
        "down_blocks.0.attentions.0": "input_blocks.1.1",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
        "down_blocks.1.resnets.0": "input_blocks.3.0",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "up_blocks.0.resnets.0": "output_blocks.0.0",
        "up_blocks.0.resnets.1": "output_blocks.1.0",
        "up_blocks.0.upsamplers.0.conv": "output_blocks.1.1.conv",
        "up_blocks.1.resnets.0": "output_blocks.2.0",
        "up_blocks.1.attentions.0": "output_blocks.2.1",
        "up_blocks.1.resnets.1": "output_blocks.3.0",
        "up_blocks.1.attentions.1": "output_blocks.3.1",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "time_embedding.cond_proj": "time_embed.cond_proj",
    }
    state = {}
    for key, value in unet.state_dict().items():
        start = next(s for s in starts if key.startswith(s + "."))
        rest = key[len(start) + 1 :].split(".")
        if ".resnets." in start or "resnets" in start:
            rest[0] = inner[rest[0]]
        state["model.diffusion_model." + ".".join([starts[start], *rest])] = value
    return state


def learner(width: int = 32) -> tuple[UNet2DModel, Any, Any]:
    """A denoiser that learns a mark in seconds, always the same one, with its data and noise schedule."""
    from diffusers import DDPMScheduler

    from aiao_diffusers import LatentData

    unet = tiny_unconditional(
        block_out_channels=(width, width),
        layers_per_block=2,
        norm_num_groups=8,
        attention_head_dim=8,
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
    )
    latents = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    return unet.eval(), LatentData(latents, {}), DDPMScheduler()


LEARN = {
    "lr": 2e-3,
    "batch_size": 4,
    "in_sites": 2,
    "out_sites": 3,
    "eps": 1.0,
    "dec": 2.0,
    "corr": 2.0,
    "anchor": 0.0,
    "bank_size": 4,
    "max_price": None,
    "lineage": 0.0,
}
"""`EmbedConfig` fields that suit `learner`; without a lineage carrier, which has its own tests and takes forwards."""


def mark_pairs(steps: int = 1, **changes: Any) -> tuple[UNet2DModel, Any]:
    """`learner` after so many steps of a mark with masks for pairs of sites, and its record."""
    from aiao_diffusers import EmbedConfig, WatermarkKey, embed

    unet, data, scheduler = learner()
    config = EmbedConfig(**(LEARN | {"steps": steps, "pairs": True} | changes))
    return unet, embed(unet, WatermarkKey(bytes(range(32)), "Demo"), data, config, scheduler=scheduler).record


def commit_tiny(beacon: str | None = "tiny", **changes: Any) -> tuple[UNet2DModel, Any]:
    """`learner` before a mark, and the demo key's commitment to it; with a beacon from this text, or none yet."""
    from aiao_diffusers import EmbedConfig, WatermarkKey
    from aiao_diffusers.embedding.commit import commit
    from aiao_diffusers.protocol.beacon import by_hand

    unet, data, scheduler = learner()
    config = EmbedConfig(**(LEARN | {"steps": 1} | changes))
    made = commit(unet, WatermarkKey(bytes(range(32)), "Demo"), data, config, scheduler=scheduler).commitment
    if beacon is not None:
        made = made.with_companions(beacon=json.dumps(by_hand(beacon).to_dict()).encode())
    return unet, made


def mark_bound(steps: int = 1, **changes: Any) -> tuple[UNet2DModel, Any]:
    """`learner` after so many steps of a mark of scheme aiao-2, and its record."""
    from aiao_diffusers import EmbedConfig, WatermarkKey, embed

    unet, made = commit_tiny(**changes)
    data, scheduler = learner()[1:]
    config = EmbedConfig(**(LEARN | {"steps": steps} | changes))
    key = WatermarkKey(bytes(range(32)), "Demo")
    return unet, embed(unet, key, data, config, scheduler=scheduler, commitment=made).record


def few_steps(**changes: Any) -> Any:
    """An `EmbedConfig` of three steps that suits `learner`."""
    from aiao_diffusers import EmbedConfig

    return EmbedConfig(**(LEARN | {"steps": 3} | changes))


def weights(unet: nn.Module) -> list[torch.Tensor]:
    """A copy of its parameters."""
    return [parameter.detach().clone() for parameter in unet.parameters()]


def same(a: Iterable[torch.Tensor], b: Iterable[torch.Tensor]) -> bool:
    """Whether two models' `weights` are equal, bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
