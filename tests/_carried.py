"""A U-Net with text, wide enough to be read, its data, and adapters of it."""

from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers import LatentData, WatermarkKey, WatermarkRecord
from aiao_diffusers.denoiser.sites import trace_on
from aiao_diffusers.lineage.carrier import CarrierReport, add_carrier
from aiao_diffusers.lineage.site import direction
from aiao_diffusers.lineage.sites import plan_carrier
from aiao_diffusers.mark.carried import carried


KEY = WatermarkKey(bytes(range(32)), "Demo")
SCHEDULER = DDPMScheduler()
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
LINEAR = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")


def text_unet(**changes: object) -> UNet2DConditionModel:
    """Four transformer blocks of 64 channels."""
    torch.manual_seed(0)
    config = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**(config | changes)).eval()


def latents() -> LatentData:
    generator = torch.Generator().manual_seed(3)
    text = torch.randn(32, 5, 16, generator=generator)
    return LatentData(torch.randn(32, 4, 8, 8, generator=generator), {"encoder_hidden_states": text})


def carry(unet: nn.Module, key: WatermarkKey = KEY, **options: object) -> CarrierReport:
    return add_carrier(unet, key, latents(), scheduler=SCHEDULER, **({"samples": 4} | options))


def carrier_record(**changes: object) -> WatermarkRecord:
    """Of a mark on `text_unet` with a lineage carrier, whose sub-paths no model carries."""
    bank = latents().take(torch.arange(3))
    layout = tuple(trace_on(text_unet(), bank))
    fields = {"kappa": 1.0, "response": 1.0, "scheduler": {"num_train_timesteps": 1000}, "bank": bank}
    fields |= {"layout": layout, "lineage": carried(0.25, text_unet()), **changes}
    return WatermarkRecord("Demo", KEY.commitment, "UNet2DConditionModel", len(layout), 2, 3, **fields)


def train_lora(unet: nn.Module, targets: tuple[str, ...], file: Path, steps: int = 80, **options: object) -> Path:
    """A stock LoRA of rank 8, trained with peft on `unet`, saved under diffusers' keys."""
    data = latents()
    torch.manual_seed(0)
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=list(targets), **options))
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=3e-3)
    unet.train()
    for _ in range(steps):
        batch = data.take(torch.randint(len(data), (4,)))
        noise, t = torch.randn_like(batch.latents), torch.randint(1000, (4,))
        noised = SCHEDULER.add_noise(batch.latents, noise, t)
        F.mse_loss(unet(noised, t, **batch.keywords()).sample, noise).backward()
        optimiser.step()
        optimiser.zero_grad()
    save_file({f"unet.{name}": v.detach().clone() for name, v in get_peft_model_state_dict(unet).items()}, file)
    return file


def gradient_lora(
    unet: nn.Module, file: Path, data: LatentData | None = None, targets: tuple[str, ...] = LINEAR, rank: int = 4
) -> Path:
    """A LoRA of one step of gradient descent on `unet`, each layer's step cut to `rank`, saved under diffusers' keys."""
    data = latents() if data is None else data
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(data.latents.shape, generator=generator)
    t = torch.randint(1000, (len(data),), generator=generator)
    unet.requires_grad_(True).zero_grad()
    F.mse_loss(unet(SCHEDULER.add_noise(data.latents, noise, t), t, **data.keywords()).sample, noise).backward()
    state = {}
    for name, module in unet.named_modules():
        if name.endswith(targets) and isinstance(module, nn.Linear | nn.Conv2d):
            u, s, v = torch.linalg.svd(module.weight.grad.flatten(1), full_matrices=False)
            down = v[:rank].reshape(rank, *module.weight.shape[1:])
            up = (u[:, :rank] * -s[:rank]).reshape(len(u), rank, *[1] * (down.ndim - 2))
            state |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
    unet.zero_grad()
    save_file({name: value.contiguous() for name, value in state.items()}, file)
    return file


def planted(blank: nn.Module, strength: float = 1.0, key: WatermarkKey = KEY) -> dict[str, torch.Tensor]:
    """Factors as training on a carrying model leaves them: each row of A leans towards the site's two directions."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for site in plan_carrier(blank).sites:
        delta = strength * (torch.tensor(direction(key, site)).float() + 1)
        for layer in site.layers:
            out, inner, *kernel = blank.get_submodule(layer).weight.shape
            lean = torch.randn(4, 1, generator=generator)
            down = torch.randn(4, inner, generator=generator) + lean * delta
            state[f"unet.{layer}.lora_A.weight"] = down.reshape(4, inner, *kernel)
            state[f"unet.{layer}.lora_B.weight"] = torch.randn(out, 4, *kernel, generator=generator)
    return state
