"""What a verdict costs: FLOPs, wall clock against sampling, peak memory, and what an unarmed wrapper adds.

The large model is Stable Diffusion 1.5's U-Net with random weights: cost depends on the geometry alone. It carries no
mark, so its verdict is cut to the first look, which is where a marked model's ends.
"""

import statistics as middle
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from scipy import stats
from torch import nn

from ...denoiser.call import evaluate
from ...denoiser.instrument import instrument
from ...denoiser.setup import placement
from ...denoiser.sites import attention_modules
from ...files.peak import peak_bytes, reset_peak, resident_bytes
from ...files.text import markdown_table
from ...formats.checkpoint import load_denoiser
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...verification.verify import verify
from ..progress import Progress, log_progress
from .flops import SCHEDULE, SD15, first_look, flop_ratio, flops, forward, geometry_flops, random_model, record_for


VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
GUIDED_STEPS = 20
MIB = 2**20


def seconds(call: Callable[[], object]) -> float:
    """Wall clock of `call`."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def guided_steps(unet: Any, record: WatermarkRecord, steps: int) -> Callable[[], object]:
    """`steps` of a 20-step guided sampling of one image (batch of two forwards, DDIM); no VAE and no text encoder."""
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(GUIDED_STEPS)

    @torch.no_grad()
    def sample() -> None:
        device, dtype = placement(unet)
        row = record.bank.take(torch.zeros(2, dtype=torch.long))
        latents, keywords = row.latents[:1].to(device, dtype), row.keywords(device, dtype)
        for t in scheduler.timesteps[:steps]:
            empty, text = evaluate(unet, torch.cat([latents, latents]), t, keywords).chunk(2)
            latents = scheduler.step(empty + 7.5 * (text - empty), t, latents).prev_sample

    return sample


def wall_clock(
    unet: nn.Module, vae: Any, native: WatermarkRecord, reduced: WatermarkRecord, *, rounds: int, steps: int
) -> dict[str, Any]:
    """Verdict against one guided image, in turns in one run. An image is 20 guided steps and one VAE decode.

    Args:
        rounds (`int`): how often all three are timed. steps (`int`): guided steps timed a round; 20 are extrapolated from
            them, for all steps cost the same.
    """
    guided = guided_steps(unet, native, steps)
    latents = native.bank.latents[:1].to(placement(vae)[1])

    @torch.no_grad()
    def decode() -> None:
        vae.decode(latents)

    rows, decodes = [], []
    for _ in range(rounds):
        decodes.append(seconds(decode))
        image = seconds(guided) * GUIDED_STEPS / steps + decodes[-1]
        rows.append((image, seconds(lambda: first_look(unet, native)), seconds(lambda: first_look(unet, reduced))))
    image, verdict, small = (middle.median(column) for column in zip(*rows, strict=True))
    ratios = [(image / a, image / b) for image, a, b in rows]
    return {
        "rounds": rounds,
        "steps_timed": steps,
        "image_s": image,
        "decode_s": middle.median(decodes),
        "verdict_s": verdict,
        "reduced_s": small,
        "verdicts_an_image": [middle.median(r[0] for r in ratios), *span(r[0] for r in ratios)],
        "reduced_an_image": [middle.median(r[1] for r in ratios), *span(r[1] for r in ratios)],
        "reduced_latents": list(reduced.bank.latents.shape[-2:]),
        "threads": torch.get_num_threads(),
    }


def span(values: Any) -> tuple[float, float]:
    """Smallest and largest."""
    found = list(values)
    return min(found), max(found)


def peak_memory(unet: nn.Module, verdict: Callable[[], object], baseline: int) -> dict[str, Any]:
    """Peak resident memory during a verdict, above `baseline` (the interpreter with everything imported), over the weights."""
    weights = sum(p.numel() * p.element_size() for p in unet.parameters())
    reset_peak()
    verdict()
    peak = peak_bytes()
    return {
        "weights_mib": weights / MIB,
        "baseline_mib": baseline / MIB,
        "peak_mib": peak / MIB,
        "ratio": (peak - baseline) / weights,
    }


def unarmed(denoiser: Any, record: WatermarkRecord, *, rounds: int) -> dict[str, Any]:
    """Latency of a wrapped, unarmed denoiser over the plain one, in turns; the order changes from round to round.

    Returns:
        `ratio` (median of the paired ratios), `ratio_ci` (its 95% interval by order statistics), `bit_exact`, `rounds`.
    """
    names = list(attention_modules(denoiser))

    def plain() -> float:
        return seconds(lambda: forward(denoiser, record))

    def wrapped() -> float:
        with instrument(denoiser, names):
            return seconds(lambda: forward(denoiser, record))

    before = forward(denoiser, record)
    with instrument(denoiser, names):
        exact = torch.equal(forward(denoiser, record), before)
    ratios = []
    for number in range(rounds):
        first, second = (plain, wrapped) if number % 2 else (wrapped, plain)
        times = {first: first(), second: second()}
        ratios.append(times[wrapped] / times[plain])
    ratios.sort()
    low = int(stats.binom.ppf(0.025, rounds, 0.5)) - 1
    ends = [ratios[max(low, 0)], ratios[min(rounds - 1 - low, rounds - 1)]]
    return {"ratio": middle.median(ratios), "ratio_ci": ends, "bit_exact": exact, "rounds": rounds}


def large(
    config: Mapping[str, Any] = SD15,
    vae: Mapping[str, Any] = VAE,
    *,
    dtype: torch.dtype = torch.bfloat16,
    reduced: int = 16,
    rounds: int = 3,
    steps: int = 2,
    latency_rounds: int = 5,
) -> dict[str, Any]:
    """Everything about a large geometry on this machine's CPU.

    Args:
        dtype: bfloat16 is half the memory; processors without bfloat16 instructions are far slower in it.
        reduced (`int`): latent size of the reduced probe.
    """
    # The interpreter with all code loaded that a verdict runs, not only imported: kernels are mapped at their first use.
    tiny = random_model(
        UNet2DConditionModel, {**config, "block_out_channels": (64,) * len(config["block_out_channels"])}, dtype
    )
    first_look(tiny, record_for(tiny, reduced))
    baseline = resident_bytes()
    unet = random_model(UNet2DConditionModel, config, dtype)
    native, small = record_for(unet, config["sample_size"]), record_for(unet, reduced)
    reduced_memory = peak_memory(unet, lambda: first_look(unet, small), baseline)
    spent: list[int] = []
    # One run for both: a forward of this size may take minutes.
    used = peak_memory(unet, lambda: spent.append(flops(lambda: first_look(unet, native))), baseline)
    whole = flops(lambda: forward(unet, native))
    result: dict[str, Any] = {
        "memory": used,
        "reduced_memory": reduced_memory,
        "dtype": str(dtype).removeprefix("torch."),
    }
    result["flops"] = flop_ratio(whole, spent[0])
    result["reduced_flops"] = flop_ratio(whole, flops(lambda: first_look(unet, small)))
    result["wall"] = wall_clock(
        unet, random_model(AutoencoderKL, vae, dtype), native, small, rounds=rounds, steps=steps
    )
    result["unarmed"] = unarmed(unet, native, rounds=latency_rounds)
    return result


def shipped(assets: Path, *, latency_rounds: int = 101) -> dict[str, Any]:
    """The shipped marked model: FLOPs of a default verdict, what it reads, and the unarmed latency."""
    record = WatermarkRecord.load(assets / "marked")
    key = WatermarkKey.load(assets / "demo.key")
    unet = load_denoiser(assets / "marked", dtype=torch.float32)
    report = verify(unet, key, record=record)
    return {
        "flops": flop_ratio(flops(lambda: forward(unet, record)), flops(lambda: verify(unet, key, record=record))),
        "verdict": report.verdict,
        "log10_p": report.log10_p,
        "unarmed": unarmed(unet, record, rounds=latency_rounds),
    }


def run(
    assets: Path,
    *,
    geometry: Mapping[str, Any] | None = None,
    reduced: int = 16,
    latency_rounds: int = 101,
    progress: Progress = log_progress,
) -> dict[str, Any]:
    """The whole measurement.

    Args:
        geometry (`Mapping`, *optional*): options of `large` for the SD 1.5 geometry; None: leave it out.
        reduced (`int`): latent size of the reduced probe. latency_rounds (`int`): paired forwards, unarmed.
    Returns:
        JSON-ready: `shipped`, `geometry` and, where it was measured, `large`.
    """
    total, done, result = 2 + (geometry is not None), 0, {}
    if geometry is not None:
        # First, for its memory is counted from a fresh interpreter.
        result["large"] = large(reduced=reduced, latency_rounds=latency_rounds, **geometry)
        done += 1
        progress(done, total, "")
    result["shipped"] = shipped(assets, latency_rounds=latency_rounds)
    progress(done + 1, total, "")
    result["geometry"] = geometry_flops(reduced=reduced)
    progress(done + 2, total, "")
    return {name: result[name] for name in ("shipped", "geometry", "large") if name in result}


def markdown(result: Mapping[str, Any]) -> str:
    """The table for people; `result` holds `shipped`, `geometry` and, where it was measured, `large`."""
    small, big = result["shipped"], result.get("large")
    dtype = "bfloat16" if big is None else big["dtype"]
    rows: list[tuple[str, str, str]] = []

    def row(what: str, a: str, b: Callable[[Any], str]) -> None:
        rows.append((what, a, "not measured" if big is None else b(big)))

    def count(flops: Mapping[str, float]) -> str:
        return f"{flops['forwards']:.2f} forwards ({flops['verdict_gflop']:.1f} of {flops['forward_gflop']:.1f} GFLOP)"

    def latency(part: Mapping[str, Any]) -> str:
        low, high = part["ratio_ci"]
        return f"{part['ratio']:.4f} ({low:.4f}-{high:.4f}, {part['rounds']} rounds), bit-exact: {part['bit_exact']}"

    def times(part: Mapping[str, Any], name: str, spent: str) -> str:
        value, low, high = part[name]
        return f"1/{value:.0f} (1/{low:.0f}-1/{high:.0f} in {part['rounds']} rounds; {part[spent]:.1f} s of {part['image_s']:.0f} s)"

    geometry = result["geometry"]
    rows.append(("default verdict, FLOPs", count(small["flops"]), count(geometry["native"])))
    row("its log10 p", f"{small['log10_p']:.1f} ({small['verdict']})", lambda b: "random weights: first look only")
    rows.append(("with the reduced probe, FLOPs", "", count(geometry["reduced"])))
    rows.append(("of a mark with masks for pairs of sites, FLOPs", "", count(geometry["pairs"])))
    row("wall clock over one 20-step guided image", "", lambda b: times(b["wall"], "verdicts_an_image", "verdict_s"))
    row("the same, reduced probe", "", lambda b: times(b["wall"], "reduced_an_image", "reduced_s"))
    row(
        "peak memory above baseline over the weights",
        "",
        lambda b: (
            f"{b['memory']['ratio']:.3f} (weights {b['memory']['weights_mib']:.0f} MiB); "
            f"reduced probe {b['reduced_memory']['ratio']:.3f}"
        ),
    )
    row("unarmed latency ratio, median (95% CI)", latency(small["unarmed"]), lambda b: latency(b["unarmed"]))
    lines = [markdown_table(("what", "shipped model, float32", f"SD 1.5 geometry, {dtype}"), rows)]
    if big is not None:
        wall = big["wall"]
        lines += [
            "",
            f"Wall clock: {wall['threads']} threads; {wall['steps_timed']} guided steps are timed a round and 20 "
            f"extrapolated, the VAE's decode ({wall['decode_s']:.1f} s) is added, text encoding left out; the reduced probe's latents are "
            f"{wall['reduced_latents'][0]} x {wall['reduced_latents'][1]}; torch {torch.__version__}.",
        ]
    return "\n".join(lines) + "\n"
