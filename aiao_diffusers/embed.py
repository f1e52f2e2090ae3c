"""Embed a key's mark into a denoiser: losses of DESIGN section 3, recipe of section 9.

Each step forwards one batch in three equal parts with the same latents, timesteps and conditioning: clean, triggered
(the key's masks at a random set of in-sites) and decoy (wrong masks). A frozen teacher gives the targets.
"""

import copy
import dataclasses
import json
import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.optimization import get_cosine_schedule_with_warmup
from torch import nn

from .align import Reference, observe
from .data import LatentData, prepare
from .errors import AlreadyMarkedError, ConfigError, NotTestableError, TrainingError
from .key import WatermarkKey
from .probe import probe, repeat
from .record import WatermarkRecord, noise_schedule, weights_sha256
from .safefile import check_finite
from .sites import Site, choose, trace_on, unwrap
from .suspect import denoiser_of
from .trigger import channel_axis, per_channel


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedConfig:
    """How to embed. The defaults are the recipe measured on the emoji model (DESIGN section 9).

    Args:
        steps (`int`): optimiser steps, default 600. lr (`float`): AdamW's peak, cosine to 0, default 5e-4.
        batch_size (`int`): latents a step, default 8; the forward holds three times as many.
        in_sites (`int`), out_sites (`int`): how many sites the key selects, defaults 5 and 7.
        kappa (`float`): trigger amplitude in units of the in-site's rms, default 1.
        response (`float`): wanted response in units of the out-site's rms, default 1.
        resp, pres, eps, dec, proj, corr (`float`): weights of the losses; see `losses`.
        bank_size (`int`): latents kept in the record's probe bank, default 16.
        checkpoint_dir (`Path`, *optional*): where to keep a resumable state; checkpoint_every (`int`): steps between.
        seed (`int`): of batches, noise and decoys; it reveals nothing of the key.
    Raises:
        ConfigError: a field is out of its range.
    """

    steps: int = 600
    lr: float = 5e-4
    batch_size: int = 8
    in_sites: int = 5
    out_sites: int = 7
    kappa: float = 1.0
    response: float = 1.0
    resp: float = 1.5
    pres: float = 2.0
    eps: float = 70.0
    dec: float = 12.0
    proj: float = 5.0
    corr: float = 2.0
    bank_size: int = 16
    checkpoint_dir: Path | str | None = None
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "in_sites", "out_sites", "bank_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("lr", "kappa", "response", "resp"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be positive and finite, got {getattr(self, name)}.")
        for name in ("pres", "eps", "dec", "proj", "corr"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}.")


@dataclass(frozen=True)
class EmbedReport:
    """What embedding did: the record to publish, the loss curves, seconds, and the noise-prediction price.

    `fidelity` is mean |eps_marked - eps_base|^2 over the model's own noise loss; .01 is one percent. `reference` is for
    reading through disguises (`align`): keep it, or the clean twin, in private.
    """

    record: WatermarkRecord
    history: list[dict[str, float]] = field(repr=False)
    seconds: float
    fidelity: float
    reference: Reference | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the probe bank."""
        return {
            "commitment": self.record.commitment,
            "steps": len(self.history),
            "seconds": self.seconds,
            "fidelity": self.fidelity,
            "last": self.history[-1] if self.history else {},
        }


def embed(
    model: Any,
    key: WatermarkKey,
    data: Any = None,
    config: EmbedConfig | None = None,
    callback: Callable[[int, dict[str, float]], None] | None = None,
    *,
    scheduler: Any = None,
    allow_marked: bool = False,
) -> EmbedReport:
    """Embed `key` into a pipeline's (or a bare) denoiser, in place.

    Args:
        model: a diffusers pipeline, or a denoiser together with `scheduler`.
        data: see `aiao_diffusers.data.prepare`; None lets the model make its own latents.
        callback: called after each step with `(step, losses)`.
        allow_marked (`bool`): embed a further key into a model that carries a record already.
    Returns:
        `EmbedReport`; its `record` is what to publish beside the weights.
    Raises:
        AlreadyMarkedError, DataError, SiteError, ConfigError; TrainingError: a loss is not finite. On any exception, also
        Ctrl-C, the denoiser gets its weights back; with `checkpoint_dir` the next call goes on where this one stopped.
    """
    config = config or EmbedConfig()
    if getattr(model, "record", None) is not None and not allow_marked:
        raise AlreadyMarkedError("this model carries a record already: pass allow_marked=True to add a second mark.")
    module = denoiser_of(model)
    if module is None:
        raise ConfigError(f"{type(model).__name__} is neither a pipeline nor a denoiser: load it first.")
    denoiser: Any = unwrap(module)
    scheduler = scheduler or getattr(model, "scheduler", None)
    if scheduler is None:
        raise ConfigError("a bare denoiser needs its noise schedule: pass scheduler=DDPMScheduler(...).")
    try:
        check_finite(dict(denoiser.named_parameters()), "the weights to mark")
    except NotTestableError as error:
        raise TrainingError(f"{error}: load them anew.") from error
    latents = prepare(model, data)
    started, training = time.time(), denoiser.training
    frozen = {name: p.requires_grad for name, p in denoiser.named_parameters()}
    teacher = copy.deepcopy(denoiser).eval().requires_grad_(False)
    sites = trace_on(denoiser, latents)
    ins, outs = choose(sites, key, config.in_sites, config.out_sites)
    # Of the clean denoiser: only what does not know the key may align a suspect.
    clean_sha256, reference = weights_sha256(denoiser), observe(denoiser, latents, scheduler.config)
    # The user's random state is not ours to spend.
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        try:
            denoiser.train().requires_grad_(True)
            history = _train(denoiser, teacher, key, ins, outs, latents, scheduler, config, callback)
        except BaseException:
            denoiser.load_state_dict(teacher.state_dict())
            raise
        finally:
            denoiser.train(training)
            for name, p in denoiser.named_parameters():
                p.requires_grad_(frozen[name])
        bank = latents.take(torch.randperm(len(latents))[: config.bank_size])
        price = fidelity(teacher, denoiser, latents, scheduler)
    record = WatermarkRecord(
        owner=key.owner,
        commitment=key.commitment,
        denoiser=type(denoiser).__name__,
        sites=len(sites),
        in_sites=len(ins),
        out_sites=len(outs),
        kappa=config.kappa,
        response=config.response,
        scheduler=json.loads(json.dumps(dict(scheduler.config), default=str)),
        bank=bank,
        marked_sha256=weights_sha256(denoiser),
        layout=tuple(sites),
        teacher_sha256=clean_sha256,
        reference_sha256=reference.sha256,
    )
    if hasattr(model, "record"):
        model.record = record
    return EmbedReport(record, history, time.time() - started, price["ratio"], reference)


def _train(
    denoiser: nn.Module,
    teacher: nn.Module,
    key: WatermarkKey,
    ins: tuple[Site, ...],
    outs: tuple[Site, ...],
    data: LatentData,
    scheduler: Any,
    config: EmbedConfig,
    callback: Callable[[int, dict[str, float]], None] | None,
) -> list[dict[str, float]]:
    accelerator = Accelerator()
    device = accelerator.device
    teacher.to(device)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=config.lr, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, min(10, config.steps), config.steps)
    model, optimizer, schedule = accelerator.prepare(denoiser, optimizer, schedule)
    checkpoint = _Checkpoint(accelerator, config, key)
    history = checkpoint.resume()
    noising = noise_schedule(dict(scheduler.config))
    masks = {s.name: torch.from_numpy(key.trigger_mask(s.name, s.width_out)).float().to(device) for s in ins}
    patterns = {s.name: torch.from_numpy(key.response_pattern(s.name, s.width_in)).float().to(device) for s in outs}
    reads = list(patterns)
    with probe(denoiser, [*masks, *reads]) as wired, probe(teacher, reads) as reference:
        for step in range(len(history), config.steps):
            batch = data.take(torch.randint(len(data), (config.batch_size,)))
            x, conditioning = batch.latents.to(device), batch.keywords(device)
            noise = torch.randn_like(x)
            t = torch.randint(int(noising.config["num_train_timesteps"]), (len(x),), device=device)
            noised = noising.add_noise(x, noise, t)
            with torch.no_grad(), reference.reading(reads) as collect:
                wanted_eps = teacher(noised, t, **conditioning).sample
                wanted = collect()
            wrong, amplitude, random_kind = decoys(masks, config)
            true, true_amplitude = triggers(masks, config)
            stacked = {n: torch.cat([torch.zeros_like(true[n]), true[n], wrong[n]]) for n in masks}
            amplitudes = torch.cat([torch.zeros_like(amplitude), true_amplitude, amplitude])
            thrice = repeat(conditioning, 3)
            with wired.armed(stacked, amplitudes), wired.reading(reads) as collect:
                eps = model(noised.repeat(3, 1, 1, 1), t.repeat(3), **thrice).sample
                entered = collect()
            terms = losses(entered, wanted, patterns, random_kind, config.response)
            terms["eps"] = F.mse_loss(eps[: len(x)].float(), wanted_eps.float())
            total = sum(getattr(config, name) * value for name, value in terms.items())
            if not torch.isfinite(total):
                raise TrainingError(f"the loss is {total.item()} at step {step}: lower lr (now {config.lr}).")
            accelerator.backward(total)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            row = {"loss": total.item(), **{name: value.item() for name, value in terms.items()}}
            history.append(row)
            if (step + 1) % config.checkpoint_every == 0:
                checkpoint.save(history)
            if callback is not None:
                callback(step + 1, row)
    checkpoint.discard()
    return history


def losses(
    entered: dict[str, torch.Tensor],
    wanted: dict[str, torch.Tensor],
    patterns: dict[str, torch.Tensor],
    random_kind: torch.Tensor,
    response: float,
) -> dict[str, torch.Tensor]:
    """Feature losses at the out-sites, each in units of the teacher's power P and averaged over sites.

    Args:
        entered: student's hidden states, `(3B, ...)`: clean, triggered, decoy. wanted: the teacher's, `(B, ...)`.
        patterns: s_b, `(C,)`. random_kind: `(B,)`, True where the decoy is a random mask.
    Returns:
        resp = |h_trig - (h_T + alpha sqrt(P) s)|^2 / P; pres = |h_clean - h_T|^2 / P; dec = |h_dec - h_T|^2 / P;
        proj = (<mean(h_dec - h_T) / sqrt(P), s> / (alpha C))^2; corr = rho^2 + .3 mean_b rho_b^2, where rho correlates a
        random decoy's centred response with s (a mean bit accuracy of .5 hides such leaks).
    Source: DESIGN section 9 (our choice).
    """
    sums: dict[str, Any] = {name: 0.0 for name in ("resp", "pres", "dec", "proj")}
    centred, signs, rho_sites = [], [], []
    for name, s in patterns.items():
        target = wanted[name].float()
        power = target.square().mean()
        clean, triggered, decoy = (part.float() for part in entered[name].chunk(3))
        shift = response * power.sqrt() * per_channel(s, target)
        sums["resp"] = sums["resp"] + (triggered - target - shift).square().mean() / power
        sums["pres"] = sums["pres"] + (clean - target).square().mean() / power
        sums["dec"] = sums["dec"] + (decoy - target).square().mean() / power
        axes = tuple(axis for axis in range(1, target.ndim) if axis != channel_axis(target))
        d = (decoy - target).mean(axes) / power.sqrt()
        sums["proj"] = sums["proj"] + ((d @ s) / (response * len(s))).square().mean()
        d = d - d.mean(1, keepdim=True)
        centred.append(d)
        signs.append(s)
        rho_sites.append(F.cosine_similarity(d, s.expand_as(d), dim=1).square())
    terms = {name: value / len(patterns) for name, value in sums.items()}
    every = torch.cat(centred, 1)
    rho = F.cosine_similarity(every, torch.cat(signs).expand_as(every), dim=1).square()
    leak = rho + 0.3 * torch.stack(rho_sites).mean(0)
    terms["corr"] = (leak * random_kind).sum() / random_kind.sum().clamp(min=1)
    return terms


def triggers(masks: dict[str, torch.Tensor], config: EmbedConfig) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The key's masks at a random non-empty set of in-sites for each sample, and amplitudes log-uniform in .8-2.5.

    The set's size is uniform: every in-site must answer alone too, or Monte Carlo over sub-paths finds silent ones.
    """
    armed = random_sets(len(masks), config.batch_size)
    rows = {n: armed[:, i, None].to(m) * m for i, (n, m) in enumerate(masks.items())}
    return rows, config.kappa * log_uniform(config.batch_size, 0.8, 2.5, next(iter(masks.values())).device)


def decoys(
    masks: dict[str, torch.Tensor], config: EmbedConfig
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Wrong masks, one set a sample: random at amplitude 1, random at .5-3, hard (true with 20-50% flipped); 1 : 1.5 : .5."""
    size, device = config.batch_size, next(iter(masks.values())).device
    kind = torch.multinomial(torch.tensor([1.0, 1.5, 0.5]), size, replacement=True)
    armed = random_sets(len(masks), size)
    rows = {}
    for i, (name, mask) in enumerate(masks.items()):
        width = len(mask)
        balanced = (torch.rand(size, width).argsort(1) < width // 2).float() * 2 - 1
        share = 0.2 + 0.3 * torch.rand(size, 1)
        flipped = mask.cpu() * (1 - 2 * (torch.rand(size, width).argsort(1) < share * width).float())
        row = torch.where((kind == 2)[:, None], flipped, balanced)
        rows[name] = (armed[:, i, None].float() * row).to(device)
    amplitude = torch.where(
        (kind == 1).to(device), log_uniform(size, 0.5, 3.0, device), torch.ones(size, device=device)
    )
    return rows, config.kappa * amplitude, (kind != 2).to(device)


def random_sets(items: int, count: int) -> torch.Tensor:
    """`count` random non-empty subsets of `items`, their size uniform: bool `(count, items)`."""
    sizes = torch.randint(1, items + 1, (count, 1))
    return torch.rand(count, items).argsort(1).argsort(1) < sizes


def log_uniform(count: int, low: float, high: float, device: torch.device) -> torch.Tensor:
    """`(count,)` draws, uniform in the logarithm."""
    return torch.exp(torch.empty(count).uniform_(math.log(low), math.log(high))).to(device)


@torch.no_grad()
def fidelity(
    base: nn.Module, marked: nn.Module, data: LatentData, scheduler: Any, *, samples: int = 256, seed: int = 0
) -> dict[str, float]:
    """Noise-prediction distance between two denoisers on the same noised latents.

    Returns:
        `mse`: mean |eps_marked - eps_base|^2; `loss`: the base's noise loss; `loss_marked`; `ratio`: mse / loss;
        `ratio_ci`: half-width of its 95% interval by the delta method; `samples`.
    """
    generator = torch.Generator().manual_seed(seed)
    noising = noise_schedule(dict(scheduler.config))
    rows = []
    for start in range(0, samples, 32):
        size = min(32, samples - start)
        batch = data.take(torch.randint(len(data), (size,), generator=generator))
        x = batch.latents
        noise = torch.randn(x.shape, generator=generator)
        t = torch.randint(int(noising.config["num_train_timesteps"]), (size,), generator=generator)
        device = next(base.parameters()).device
        inputs = (noising.add_noise(x, noise, t).to(device), t.to(device))
        a, b = (m(*inputs, **batch.keywords(device)).sample.float().cpu() for m in (base, marked))
        axes = tuple(range(1, x.ndim))
        rows.append(
            torch.stack(
                [(a - b).square().mean(axes), (a - noise).square().mean(axes), (b - noise).square().mean(axes)]
            )
        )
    table = torch.cat(rows, 1).double()
    mse, loss, loss_marked = table.mean(1).tolist()
    ratio = mse / loss
    spread = (table[0] - ratio * table[1]).std().item() / loss / math.sqrt(table.shape[1])
    return {
        "mse": mse,
        "loss": loss,
        "loss_marked": loss_marked,
        "ratio": ratio,
        "ratio_ci": 1.96 * spread,
        "samples": float(table.shape[1]),
    }


class _Checkpoint:
    """Resumable state of one embedding: written under a temporary name, renamed, bound to its key and configuration."""

    def __init__(self, accelerator: Accelerator, config: EmbedConfig, key: WatermarkKey) -> None:
        self.accelerator = accelerator
        self.folder = Path(config.checkpoint_dir) if config.checkpoint_dir is not None else None
        fields = dataclasses.asdict(config)
        del fields["checkpoint_dir"], fields["checkpoint_every"]
        self.identity = json.dumps({"commitment": key.commitment, **fields}, sort_keys=True)

    def save(self, history: list[dict[str, float]]) -> None:
        if self.folder is None:
            return
        partial = self.folder / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.save_state(str(partial))
        (partial / "progress.json").write_text(json.dumps({"identity": self.identity, "history": history}))
        target = self.folder / f"step-{len(history):07d}"
        partial.rename(target)
        for old in self.folder.glob("step-*"):
            if old != target:
                shutil.rmtree(old)

    def resume(self) -> list[dict[str, float]]:
        states = sorted(self.folder.glob("step-*")) if self.folder is not None else []
        if not states:
            return []
        progress = json.loads((states[-1] / "progress.json").read_text())
        if progress["identity"] != self.identity:
            raise TrainingError(f"'{self.folder}' is the checkpoint of another key or configuration: remove it.")
        self.accelerator.load_state(str(states[-1]))
        logger.info("resumed at step %d from %s", len(progress["history"]), states[-1])
        return list(progress["history"])

    def discard(self) -> None:
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
