"""FLOPs of a verdict, and models with random weights to count them on: cost depends on the geometry alone."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ...denoiser.call import evaluate
from ...denoiser.inputs import LatentData
from ...denoiser.instrument import instrument
from ...denoiser.setup import placement
from ...denoiser.sites import trace, trace_on
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...mark.selection import choose
from ...mark.subpath import sub_path
from ...verification.plan_run import FIRST_CHANNELS
from ...verification.verify import verify


# unet/config.json of stable-diffusion-v1-5, without diffusers' defaults; 860M parameters.
SD15: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
IN_SITES, OUT_SITES = 5, 7  # as `EmbedConfig` has them
TEXT_TOKENS = 77
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
KEY = WatermarkKey(bytes(range(32)), "cost")


def random_model(
    kind: type[nn.Module], config: Mapping[str, Any], dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Any:
    """A model of this geometry with random weights, made in `dtype` so that no float32 copy is ever held."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            torch.set_default_dtype(dtype)
            return kind(**config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)


def random_bank(unet: Any, size: int, seed: int = 0) -> LatentData:
    """Random latents of `size` x `size` with random text: enough to measure cost, useless for reading a mark."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randn(2, TEXT_TOKENS, unet.config.cross_attention_dim, generator=generator)
    latents = torch.randn(2, unet.config.in_channels, size, size, generator=generator)
    return LatentData(latents, {"encoder_hidden_states": text})


def record_for(unet: Any, size: int) -> WatermarkRecord:
    """A record as embedding would leave it, with latents of `size` x `size`."""
    # The layout does not depend on the latents' size; the smallest that passes every downsampling is enough.
    smallest = 2 ** (len(unet.config.block_out_channels) - 1)
    layout = tuple(trace_on(unet, random_bank(unet, smallest)))
    return WatermarkRecord(
        owner=KEY.owner,
        commitment=KEY.commitment,
        denoiser=type(unet).__name__,
        sites=len(layout),
        in_sites=IN_SITES,
        out_sites=OUT_SITES,
        kappa=1.0,
        response=1.0,
        scheduler=SCHEDULE,
        bank=random_bank(unet, size),
        layout=layout,
    )


def first_look(unet: nn.Module, record: WatermarkRecord) -> Any:
    """A verdict as far as a marked model takes it: checks, hashes, one trial, statistics, controls."""
    return verify(unet, KEY, record=record, trials=1, amplitudes=(1.0,), whiten=False)


@torch.no_grad()
def forward(denoiser: Any, record: WatermarkRecord, batch: int = 1) -> torch.Tensor:
    """One full forward on the record's first probe input, `batch` copies of it."""
    device, dtype = placement(denoiser)
    row = record.bank.take(torch.zeros(batch, dtype=torch.long))
    time_ = torch.full((batch,), 500, device=device)
    return evaluate(denoiser, row.latents.to(device, dtype), time_, row.keywords(device, dtype))


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of `call`, by torch's counter."""

    def attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
        return sdpa_flop_count(query, key, value)

    # torch counts attention on GPUs only; on a CPU it is this operator.
    on_cpu = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=on_cpu) as counter:
        call()
    return int(counter.get_total_flops())


def flop_ratio(whole: int, spent: int) -> dict[str, Any]:
    """FLOPs of a verdict, and over those of one full forward at batch 1 and native latent size."""
    return {"forward_gflop": whole / 1e9, "verdict_gflop": spent / 1e9, "forwards": spent / whole}


def geometry_flops(config: Mapping[str, Any] = SD15, *, reduced: int = 16) -> dict[str, Any]:
    """`flop_ratio` of a verdict's first look from the geometry alone, in seconds: on torch's meta device, without weights.

    Returns:
        `native` and `reduced`: with probe latents of the model's own size, and of `reduced` x `reduced`. `pairs`: with latents of its own
        size, of a mark with masks for pairs of sites.
    """
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config).eval()

    def call(batch: int, size: int) -> Callable[[], object]:
        sample = torch.zeros(batch, unet.config.in_channels, size, size, device="meta")
        text = torch.zeros(batch, TEXT_TOKENS, unet.config.cross_attention_dim, device="meta")
        time_ = torch.zeros(batch, dtype=torch.long, device="meta")
        return torch.no_grad()(lambda: unet(sample, time_, encoder_hidden_states=text))

    layout = trace(unet, call(1, config["sample_size"]))
    ins, outs = choose(layout, KEY, IN_SITES, OUT_SITES)
    outs = sub_path(ins, outs).until(FIRST_CHANNELS).out_sites

    def look(size: int, triggered: int = 1) -> int:
        with instrument(unet, [site.name for site in (*ins, *outs)]) as wired:
            return flops(lambda: wired.activations([site.name for site in outs], call(1 + triggered, size)))

    whole = flops(call(1, config["sample_size"]))
    native = config["sample_size"]
    spent = {"native": look(native), "reduced": look(reduced), "pairs": look(native, len(outs))}
    return {name: flop_ratio(whole, number) for name, number in spent.items()}
