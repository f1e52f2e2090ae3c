"""A mark in closed form: a least-squares edit of the layer before each out-site, as model editing does. Forwards alone, no optimiser.

The layer that last wrote to the residual stream before an out-site gets a rank-one update r v^T. v tells triggered inputs of
that layer from clean ones and from inputs under wrong masks: the ridge regression of "is triggered" on the input, whose
normal equations hold the covariance of all that is to stay as it is. r is the shift of the residual stream that moves the
out-site's features by `edit` times their rms along the pattern; v's answer to triggered inputs is short of 1 by as much as they resemble
the others, so a site shifts in proportion to how well it can tell, and costs accordingly. Out-sites are edited in order of
execution, each on what the earlier edits left.

Source: our choice, after the closed forms of model editing (Meng et al., "Locating and editing factual associations", 2022).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..denoiser.call import evaluate
from ..denoiser.inputs import LatentData
from ..denoiser.instrument import InstrumentedDenoiser, repeat
from ..denoiser.schedule import noise_schedule
from ..denoiser.setup import eval_mode
from ..errors import ConfigError
from ..mark.mark import Mark
from .config import EmbedConfig
from .losses import decoys, triggers


SAMPLES = 128  # clean ones a site, as many triggered and as many under wrong masks
KEEP = 10.0  # weight of clean and of wrongly masked inputs against triggered ones
RIDGE = 1e-2  # added to the normal equations, in units of their mean diagonal


@dataclass(frozen=True)
class Edit:
    """What stays the same from site to site.

    Args:
        instrumented (`InstrumentedDenoiser`): at all sites of `mark`.
        mark (`Mark`): what is embedded.
        data (`LatentData`): clean latents with conditioning.
        schedule: the noise schedule's config.
        config (`EmbedConfig`): `edit` is the strength; the draws hang on `seed` alone, so that under several processes each
            makes the same edit.
    """

    instrumented: InstrumentedDenoiser
    mark: Mark
    data: LatentData
    schedule: dict[str, Any]
    config: EmbedConfig

    @cached_property
    def _noising(self) -> Any:
        return noise_schedule(self.schedule)

    @cached_property
    def _masks(self) -> dict[str, torch.Tensor]:
        return {
            n: rows[0] for n, rows in self.mark.masks(next(self.instrumented.denoiser.parameters()).device).items()
        }

    @torch.no_grad()
    def apply(self) -> None:
        """Write the mark into the denoiser's weights, in place.

        Raises:
            ConfigError: the layer before an out-site is of another kind; nothing has been changed then.
        """
        denoiser = self.instrumented.denoiser
        layers = [(site.name, *writer(denoiser, site.name)) for site in self.mark.outs]
        patterns = self.mark.patterns(layers[0][1].weight.device)
        with eval_mode(denoiser), torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            for name, layer, norm in layers:
                self._edit_site(name, layer, norm, patterns[name])

    def _edit_site(self, name: str, layer: Any, norm: Any, pattern: torch.Tensor) -> None:
        width, batches = layer.weight[0].numel() + 1, max(1, round(SAMPLES / self.config.batch_size))
        # On the CPU: not every accelerator has double precision.
        moment = torch.zeros(width, width, dtype=torch.float64)
        wanted = torch.zeros(width, dtype=torch.float64)
        deviation = power = 0.0
        for _ in range(batches):
            rows, states = self._draw_inputs(name, layer, norm)
            clean, triggered, wrong = rows.float().chunk(3)
            products = KEEP * (clean.T @ clean + wrong.T @ wrong) + triggered.T @ triggered
            moment += (products / len(clean)).cpu().double() / batches
            wanted += triggered.mean(0).cpu().double() / batches
            deviation += float(states.float().std(-1).mean()) / batches
            power += float(norm(states).float().square().mean()) / batches
        moment.diagonal().add_(RIDGE * moment.diagonal().mean())
        tells = torch.linalg.solve(moment, wanted)
        # A shift x of the residual stream becomes gain x / deviation behind the LayerNorm, less its mean over channels.
        size = self.config.edit * power**0.5 * deviation
        gain = norm.weight.cpu().double()
        # A channel that the LayerNorm all but drops cannot be moved; dividing by its gain would blow the update up.
        answer = torch.where(gain.abs() > 0.05 * gain.abs().median(), size * pattern.cpu() / gain, 0.0)
        answer = answer - answer.mean()
        layer.weight += torch.outer(answer, tells[:-1]).reshape(layer.weight.shape).to(layer.weight)
        layer.bias += (answer * tells[-1]).to(layer.bias)

    def _draw_inputs(self, site: str, layer: Any, norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward. What enters the layer, `(3 B tokens, width + 1)` with a last column of ones, as clean, triggered and
        decoy rows; what enters the norm where nothing is armed, `(B, tokens, C)`.
        """
        device, config, noising, masks = layer.weight.device, self.config, self._noising, self._masks
        batch = self.data.take(torch.randint(len(self.data), (config.batch_size,)))
        x = batch.latents.to(device)
        t = torch.randint(noising.steps, (len(x),), device=device)
        (true, loud), (wrong, louder, _) = triggers(masks, config), decoys(masks, config)
        armed = {name: torch.cat([torch.zeros_like(true[name]), true[name], wrong[name]]) for name in masks}
        amplitude = torch.cat([torch.zeros_like(loud), loud, louder])
        noised = noising.add_noise(x, torch.randn_like(x), t)
        sample, times, keywords = (repeat(value, 3) for value in (noised, noising.level(t), batch.keywords(device)))
        with (
            _capture_inputs(layer) as inputs,
            _capture_inputs(norm) as states,
            self.instrumented.arm(armed, amplitude),
        ):
            self.instrumented.activations(
                [site], lambda: evaluate(self.instrumented.denoiser, sample, times, keywords)
            )
        rows = inputs[0].movedim(1, -1) if isinstance(layer, nn.Conv2d) else inputs[0]
        rows = rows.flatten(0, -2)
        return torch.cat([rows, torch.ones_like(rows[:, :1])], 1), states[0].chunk(3)[0]


def writer(denoiser: nn.Module, site: str) -> tuple[Any, Any]:
    """The layer that last wrote to the residual stream before this site, and the LayerNorm between them.

    Raises:
        ConfigError: the site is not in a plain transformer block of a Stable Diffusion U-Net.
    """
    block, _, name = site.rpartition(".")
    outer, _, number = block.rpartition(".transformer_blocks.")
    inner: Any = denoiser.get_submodule(block)
    layer: Any = None
    if number.isdigit() and name == "attn1" and isinstance(getattr(inner, "norm1", None), nn.LayerNorm):
        # Of a later transformer layer: the feed-forward of the one before.
        before = f"{outer}.transformer_blocks.{int(number) - 1}.ff.net.2" if int(number) else f"{outer}.proj_in"
        layer, norm = denoiser.get_submodule(before), inner.norm1
    elif number.isdigit() and name == "attn2" and isinstance(getattr(inner, "norm2", None), nn.LayerNorm):
        layer, norm = denoiser.get_submodule(f"{block}.attn1.to_out.0"), inner.norm2
    if layer is None or type(layer) not in (nn.Linear, nn.Conv2d) or layer.bias is None or norm.weight is None:
        raise ConfigError(
            f"a closed-form edit needs plain transformer blocks (LayerNorm, linear layers), which '{site}' is not in: pass edit=0."
        )
    return layer, norm


@contextmanager
def _capture_inputs(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """The first positional argument of each call of `module` during the block."""
    seen: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        handle.remove()
