"""The training loop of `embed`: batches, one forward in three parts, the clean twin by switching the update off."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import nn

from ..denoiser.call import Keywords, evaluate
from ..denoiser.inputs import LatentData
from ..denoiser.instrument import InstrumentedDenoiser, repeat
from ..denoiser.schedule import noise_schedule
from ..errors import TrainingError
from ..mark.mark import Mark, select_rows
from .config import EmbedConfig
from .early_stop import measure_strength
from .losses import agreement, decoys, losses, triggers
from .resume import History, TrainingState
from .weight_change import WeightChange


Callback = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Batch:
    """One step's draws; `B` rows each; `asked` as of `Mark`.

    `armed` and `amplitude` hold the parts clean, triggered, decoy and, if any, kept.
    """

    noised: torch.Tensor
    t: torch.Tensor  # the scheduler's own time
    conditioning: Keywords
    armed: list[dict[str, torch.Tensor]]
    amplitude: list[torch.Tensor]
    random_kind: torch.Tensor
    asked: torch.Tensor | None


class Training:
    """One run: what stays the same from step to step.

    Args:
        instrumented (`InstrumentedDenoiser`): at all sites of `marks`.
        update (`WeightChange`): what is trained.
        marks (`Sequence[Mark]`): what is embedded, then earlier marks, whose responses must stay as they are.
        data (`LatentData`): clean latents with conditioning.
        schedule: the noise schedule's config.
        config (`EmbedConfig`): how to embed.
        base_loss (`float`): the clean twin's own loss, the unit of what a changed prediction costs.
    Attributes:
        history: one row of losses a step, so far.
        stopped (`int`, *optional*): the step of an early stop.
    """

    def __init__(
        self,
        instrumented: InstrumentedDenoiser,
        update: WeightChange,
        marks: Sequence[Mark],
        data: LatentData,
        schedule: dict[str, Any],
        config: EmbedConfig,
        base_loss: float,
    ) -> None:
        self.instrumented, self.update, self.base_loss = instrumented, update, base_loss
        mark, *kept = marks
        self.mark = mark
        self.data, self.schedule, self.config = data, schedule, config
        self.denoiser: Any = instrumented.denoiser
        self.noising = noise_schedule(schedule)
        self.accelerator = Accelerator()
        self.device = self.accelerator.device
        self.masks, self.patterns = mark.masks(self.device), mark.patterns(self.device)
        self.kept = [(earlier, earlier.masks(self.device)) for earlier in kept]
        self.kept_reads = list(dict.fromkeys(s.name for earlier in kept for s in earlier.outs))
        self.kept_names = [earlier.key.identity for earlier in kept]
        self.state: TrainingState | None = None
        self.history: History = []
        self.stopped: int | None = None

    def run(self, clean_twin_sha256: str, callback: Callback | None = None) -> None:
        """Train, from the last checkpoint where there is one.

        Args:
            clean_twin_sha256 (`str`): hash of the unmarked weights, to which a checkpoint is bound.
            callback: called after each step with `(step, losses)`.
        Raises:
            TrainingError: loss or gradient not finite, or a checkpoint cannot be written; the last whole one is kept.
        """
        config, accelerator = self.config, self.accelerator
        parameters = dict(self.update.parameters)
        optimizer = torch.optim.AdamW(parameters.values(), lr=config.lr, weight_decay=0.0)
        # Not prepared: accelerate would step it once for every process.
        rates = get_cosine_schedule_with_warmup(optimizer, min(10, config.steps), config.steps)
        own = set(vars(self.denoiser))
        model, optimizer = accelerator.prepare(self.denoiser.train(), optimizer)
        identity = {
            "commitment": self.mark.key.identity,
            "kept": " ".join(self.kept_names),
            "base": clean_twin_sha256,
        }
        self.state = state = TrainingState(accelerator, config, parameters, optimizer, rates, **identity)
        # A step before that failed, or the user's own training, may have left some.
        optimizer.zero_grad()
        try:
            self._take_steps(model, optimizer, rates, state, callback)
        finally:
            # Off with accelerate's autocast, and with its note that the model has one: a later `prepare` would believe it.
            accelerator.unwrap_model(model, keep_fp32_wrapper=False)
            for name in {"forward", "_is_accelerate_prepared"} - own:
                vars(self.denoiser).pop(name, None)

    def _take_steps(
        self, model: nn.Module, optimizer: Any, rates: Any, state: TrainingState, callback: Callback | None
    ) -> None:
        config, accelerator, parameters = self.config, self.accelerator, self.update.parameters
        self.history = history = state.resume()
        for step in range(len(history) + 1, config.steps + 1):
            row = self._backpropagate(model, step)
            norm = accelerator.clip_grad_norm_(parameters.values(), 1.0)
            # A loss scaler skips such steps by itself.
            if accelerator.scaler is None and not torch.isfinite(norm):
                raise TrainingError(f"the gradient is {norm.item()} at step {step}: lower lr (now {config.lr}).")
            optimizer.step()
            optimizer.zero_grad()  # before the originals are read: both need memory
            # Decoupled, as AdamW's decay is, but towards what the model was.
            self.update.shrink(max(0.0, 1.0 - rates.get_last_lr()[0] * config.anchor))
            rates.step()
            if config.stop_bits is not None and step % config.check_every == 0 and self._is_strong(row):
                self.stopped = step
            history.append(row)
            if step % config.checkpoint_every == 0:
                state.save(history)
            if callback is not None:
                callback(step, row)
            if self.stopped is not None:
                break

    def discard(self) -> None:
        """What the last step left to resume from is not needed any more; to be called once the mark is whole."""
        self.accelerator.wait_for_everyone()
        if self.state is not None:
            self.state.discard()

    def draw(self) -> Batch:
        """One step's rows."""
        asked = self.mark.draw_asked(self.config.batch_size)
        masks = select_rows(self.masks, asked)
        batch = self.data.take(torch.randint(len(self.data), (self.config.batch_size,)))
        x, conditioning = batch.latents.to(self.device), batch.keywords(self.device)
        noise = torch.randn_like(x)
        t = torch.randint(self.noising.steps, (len(x),), device=self.device)
        wrong, wrong_amplitude, random_kind = decoys(masks, self.config)
        true, true_amplitude = triggers(masks, self.config)
        armed, amplitude = [{}, true, wrong], [torch.zeros_like(true_amplitude), true_amplitude, wrong_amplitude]
        if self.kept:
            # Each row arms one earlier mark; the others' rows are zero, which arms nothing.
            whose = torch.randint(len(self.kept), (len(x), 1), device=self.device)
            rows: dict[str, torch.Tensor] = {}
            for number, (mark, table) in enumerate(self.kept):
                drawn, _ = triggers(select_rows(table, mark.draw_asked(len(x))), self.config)
                for name, row in drawn.items():
                    rows[name] = rows.get(name, 0.0) + row * (whose == number)
            armed.append(rows)
            amplitude.append(triggers(masks, self.config)[1])
        noised = self.noising.add_noise(x, noise, t)
        rows_asked = None if asked is None else asked.to(self.device)
        return Batch(noised, self.noising.level(t), conditioning, armed, amplitude, random_kind, rows_asked)

    def _targets(self, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """What the clean twin says: its prediction, its clean states, and its states under the earlier marks."""
        with torch.no_grad(), self.update.original():
            self.denoiser.eval()
            clean, eps = self._forward(self.denoiser, batch, slice(None), slice(0, 1))
            kept = self._forward(self.denoiser, batch, slice(None), slice(3, 4))[0] if self.kept else {}
            self.denoiser.train()
        return eps.float(), {n: h.float() for n, h in clean.items()}, {n: h.float() for n, h in kept.items()}

    def _backpropagate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Leave one step's gradients; the loss and its unweighted terms, averaged over the processes."""
        config, batch = self.config, self.draw()
        # Before the first backward pass: while no gradient exists, the original weights find room.
        wanted_eps, wanted, wanted_kept = self._targets(batch)
        power = {name: states.square().mean() for name, states in wanted.items()}
        size = len(batch.t)
        summed: dict[str, torch.Tensor] = {}
        parts = torch.arange(size, device=self.device).chunk(config.accumulate)
        for part in parts:
            with nullcontext() if part is parts[-1] else self.accelerator.no_sync(model):
                entered, eps = self._forward(model, batch, part, slice(None))
                count = len(part)
                terms = self.terms(
                    {name: entered[name][: 3 * count] for name in self.patterns},
                    {name: wanted[name][part] for name in self.patterns},
                    power,
                    batch,
                    part,
                )
                reached = agreement(
                    {name: entered[name][: 3 * count] for name in self.patterns},
                    {name: wanted[name][part] for name in self.patterns},
                    self.patterns,
                    None if batch.asked is None else batch.asked[part],
                )
                terms["eps"] = F.mse_loss(eps[:count].float(), wanted_eps[part]) / self.base_loss
                if self.kept:
                    moved = [
                        (entered[name][3 * count :].float() - wanted_kept[name][part]).square().mean() / power[name]
                        for name in self.kept_reads
                    ]
                    terms["keep"] = torch.stack(moved).mean()
                total = torch.stack([self._loss_weight(name, step) * value for name, value in terms.items()]).sum()
                self.accelerator.backward(total * (count / size))
            for name, value in {"loss": total, **terms, "agreement": reached}.items():
                summed[name] = summed.get(name, 0.0) + value.detach() * (count / size)
        means = self.accelerator.reduce(torch.stack(list(summed.values())), "mean").tolist()
        row = dict(zip(summed, means, strict=True))
        # After the reduction, so that every process stops at the same step and none waits for the others for ever.
        if not math.isfinite(row["loss"]):
            raise TrainingError(f"the loss is {row['loss']} at step {step}: lower lr (now {config.lr}).")
        return row

    def terms(
        self,
        entered: dict[str, torch.Tensor],
        wanted: dict[str, torch.Tensor],
        power: dict[str, torch.Tensor],
        batch: Batch,
        part: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """The feature losses of the step's rows `part`; `entered`, `wanted` and `power` as for `losses`."""
        share = batch.random_kind.float().mean().clamp(min=1 / len(batch.t))
        kinds, asked = batch.random_kind[part], None if batch.asked is None else batch.asked[part]
        return losses(entered, wanted, power, self.patterns, kinds, share, self.config.response, asked)

    def _loss_weight(self, term: str, step: int) -> float:
        """Of a loss at a step; see `EmbedConfig` of corr."""
        whole: float = getattr(self.config, term)
        if term != "corr":
            return whole
        grown = min(1.0, max(0.0, step / self.config.steps - 0.3) / 0.3)
        return whole * (0.2 + 0.8 * grown)

    def _forward(
        self, model: nn.Module, batch: Batch, part: Any, modes: slice
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """These rows in one forward, once for each of the `modes`: what entered the out-sites, and the prediction."""

        def rows(value: Any) -> Any:
            return value.map(rows) if isinstance(value, Keywords) else value[part]

        armed, amplitude = batch.armed[modes], [value[part] for value in batch.amplitude[modes]]
        sites = {name: mask for masks in armed for name, mask in masks.items()}
        stacked = {
            name: torch.cat([masks[name][part] if name in masks else torch.zeros_like(mask[part]) for masks in armed])
            for name, mask in sites.items()
        }
        reads = list(dict.fromkeys([*self.patterns, *self.kept_reads]))
        noised, t, conditioning = (
            repeat(rows(value), len(armed)) for value in (batch.noised, batch.t, batch.conditioning)
        )
        with self.instrumented.arm(stacked, torch.cat(amplitude)), self.instrumented.capture(reads) as collect:
            eps = evaluate(model, noised, t, conditioning)
            return collect(), eps

    def _is_strong(self, row: dict[str, float]) -> bool:
        """Whether the mark is strong enough to stop, in which all processes must agree; what was measured joins `row`."""
        config = self.config
        assert config.stop_bits is not None
        strength = measure_strength(
            self.instrumented, self.mark, self.data, self.schedule, kappa=config.kappa, seed=config.seed
        )
        row |= {"bits": strength.bits, "weakest": strength.weakest, "wrong_log10_p": strength.wrong_log10_p}
        agreed = torch.tensor(float(strength.reaches(config.stop_bits)), device=self.device)
        return bool(self.accelerator.reduce(agreed, "mean") == 1)
