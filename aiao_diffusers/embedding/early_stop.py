"""Is the mark strong enough? What the early stop of `embed` asks, on draws of its own."""

from dataclasses import dataclass

import torch

from ..denoiser.call import CallInputs
from ..denoiser.inputs import LatentData
from ..denoiser.instrument import InstrumentedDenoiser
from ..denoiser.schedule import noise_schedule, probe_timesteps
from ..denoiser.setup import eval_mode, placement
from ..mark.key import WatermarkKey
from ..mark.mark import Mark
from ..mark.reading import read_subpath
from ..mark.subpath import SubPath, sub_path
from ..stats.hits import combined_log10_p, count_hits


ROWS = 4  # latents a reading is averaged over
WRONG = 8  # wrong masks tried
WRONG_FLOOR = -4.0  # a wrong mask that reads below this log10 p leaks


@dataclass(frozen=True)
class MarkStrength:
    """Bit accuracy with all in-sites armed, the weakest in-site's alone, and the smallest log10 p of a wrong mask."""

    bits: float
    weakest: float
    wrong_log10_p: float

    def reaches(self, wanted: float) -> bool:
        """Whether every in-site alone, and all together, read at `wanted`, and no wrong mask reads."""
        return min(self.bits, self.weakest) >= wanted and self.wrong_log10_p >= WRONG_FLOOR


@torch.no_grad()
def measure_strength(
    instrumented: InstrumentedDenoiser,
    mark: Mark,
    data: LatentData,
    schedule: dict[str, object],
    *,
    kappa: float,
    seed: int,
) -> MarkStrength:
    """Read the mark as a verifier would, and the true patterns under `WRONG` wrong masks.

    Args:
        instrumented (`InstrumentedDenoiser`): at the sites of `mark` at least.
        mark (`Mark`): what is read.
        data (`LatentData`): clean latents with conditioning, of which rows are drawn.
        schedule: the noise schedule's config.
        kappa (`float`): trigger amplitude in units of the in-site's rms.
        seed (`int`): of a generator of its own, so that training draws the same numbers whether or not anyone looked.
    Returns:
        `MarkStrength`
    Raises:
        NotTestableError: activations are not finite.
    """
    key, ins, outs = mark.key, mark.ins, mark.outs
    generator = torch.Generator().manual_seed(seed)
    noising = noise_schedule(schedule)
    steps = noising.steps
    device, dtype = placement(instrumented.denoiser)

    def tests(masks: WatermarkKey, armed: SubPath) -> list[tuple[int, int, int]]:
        rows = data.take(torch.randint(len(data), (ROWS,), generator=generator))
        noise = torch.randn(rows.latents.shape, generator=generator)
        t = torch.randint(*probe_timesteps(steps), (ROWS,), generator=generator)
        sample = noising.add_noise(rows.latents, noise, t).to(device, dtype)
        inputs = CallInputs(sample, noising.level(t).to(device), rows.keywords(device, dtype))
        readings = read_subpath(instrumented, masks, armed, kappa, inputs, pairs=mark.pairs)
        return [count_hits(r.d.double().numpy(), key.response_pattern(r.site, len(r.d))) for r in readings]

    with eval_mode(instrumented.denoiser):
        together = sub_path(ins, outs)
        alone = [_bits(tests(key, sub_path([site], outs))) for site in ins]
        bits = _bits(tests(key, together))
        wrong = min(combined_log10_p(tests(key.child(f"wrong/{i}"), together)) for i in range(WRONG))
    return MarkStrength(bits, min(alone), wrong)


def _bits(tests: list[tuple[int, int, int]]) -> float:
    return sum(hit for _, _, hit in tests) / sum(channels for channels, _, _ in tests)
