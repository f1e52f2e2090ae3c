"""Embed a key's mark into a denoiser: losses over clean, triggered and decoy passes.

Each step forwards one batch in three equal parts with the same latents, timesteps and conditioning: clean, triggered
(the key's masks at a random set of in-sites) and decoy (wrong masks). The model as it was before gives the targets.
"""

import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..denoiser.encode import prepare
from ..denoiser.hashes import weights_sha256
from ..denoiser.inputs import LatentData
from ..denoiser.instrument import instrument
from ..denoiser.price import fidelity, predictions, price
from ..denoiser.setup import denoiser_of, eval_mode, placement
from ..denoiser.sites import Site, trace_on, unwrap
from ..errors import AIAOError, AlreadyMarkedError, ConfigError, DataError, NotTestableError, TrainingError
from ..files.safetensors_header import check_finite
from ..mark.key import WatermarkKey
from ..mark.mark import Mark
from ..mark.record import WatermarkRecord
from ..mark.selection import choose
from ..verification.reference import Reference, observe
from ..verification.verify import verify
from .closed_form import Edit
from .config import EmbedConfig
from .layer_profile import LayerProfile, self_profile
from .report import EmbedReport
from .site_gain import site_gain
from .training import Callback, Training
from .weight_change import LowRank, StoredWeights, WeightChange, require_no_adapter


__all__ = ["EmbedConfig", "EmbedReport", "embed", "fidelity"]

ROUNDS = 20  # of shrinking to a price, at most


def embed(
    model: Any,
    key: WatermarkKey,
    data: Any = None,
    config: EmbedConfig | None = None,
    callback: Callback | None = None,
    *,
    scheduler: Any = None,
    allow_marked: bool = False,
    keep: Sequence[WatermarkKey] = (),
    earlier: WatermarkRecord | None = None,
    profile: LayerProfile | None = None,
) -> EmbedReport:
    """Embed `key` into a pipeline's (or a bare) denoiser, in place.

    Under `accelerate launch` or `torchrun` every process calls this with the same arguments; each draws batches of its
    own, all end with the same weights, and one of them should save. Mixed precision is the launcher's. Training is on the device
    that accelerate finds; the denoiser comes back to its own.

    Args:
        model: a diffusers pipeline, or a denoiser together with `scheduler`.
        data: see `aiao_diffusers.denoiser.encode.prepare`; None lets the model make its own latents.
        callback: called after each step with `(step, losses)`.
        allow_marked (`bool`): embed a further key into a model that carries a record already; the new record takes the
            old one's place, so keep a copy of that.
        keep: keys of earlier marks, embedded with as many sites, that must go on reading; a mark not named here weakens.
        earlier (`WatermarkRecord`, *optional*): the record of earlier marks, whose trigger amplitudes and kind of masks
            (`EmbedConfig.pairs`, else ConfigError) a further mark shares; default: the pipeline's.
        profile (`LayerProfile`, *optional*): which layers are lazy, for `train="lazy"`; None: a short fine-tune tells.
    Returns:
        `EmbedReport`; its `record` is what to publish beside the weights.
    Raises:
        AlreadyMarkedError, DataError, SiteError, ConfigError; TrainingError: a loss is not finite, or the disk is full.
        On any exception, also Ctrl-C, the denoiser gets its weights back; with `checkpoint_dir` the next call goes on
        from the last checkpoint. Warns when the mark does not verify in the end. One exception: with `train="lora"`, once the factors are fused for the record's hash.
    """
    config = config or EmbedConfig()
    if keep and not config.steps:
        raise ConfigError("keep= takes training: an edit alone does not hold earlier marks; set steps above 0.")
    earlier = earlier or getattr(model, "record", None)
    if keep and earlier is None:
        # Which sites the earlier keys chose depends on their record's `loudness`; others would be held in their place.
        raise ConfigError("keep= needs the record of the earlier marks: pass it as earlier=, or the pipeline with it.")
    started = time.time()
    denoiser, scheduler = _checked(model, scheduler, allow_marked)
    if earlier is not None and earlier.pairs != config.pairs:
        # One record stands for all earlier marks: of mixed kinds, some would be held by masks they do not answer to.
        option = "with --pairs" if earlier.pairs else "without --pairs"
        raise ConfigError(f"a further mark is of the earlier ones' kind: pass pairs={earlier.pairs} ({option}).")
    latents = prepare(model, data, max_unreadable=config.max_unreadable)
    sites = _sites(denoiser, latents)
    with _borrowed(denoiser, config.seed):
        # Of the clean denoiser: only what does not know the key may align a suspect.
        base, reference = weights_sha256(denoiser), observe(denoiser, latents, scheduler.config)
        loud = _loudness(earlier, denoiser, sites, latents, scheduler, config)
        silent = [name for name, factor in loud.items() if not factor]

        mark, *kept = (
            Mark(k, *choose(sites, k, config.in_sites, config.out_sites, silent), config.pairs) for k in (key, *keep)
        )
        wrapped = list(dict.fromkeys(site.name for one in (mark, *kept) for site in (*one.ins, *one.outs)))
        before, noise = predictions(denoiser, latents, scheduler)
        update = _update(denoiser, latents, scheduler, config, profile)
        trained = sum(p.numel() for p in update.parameters.values()) if config.steps else 0
        try:
            # The probe comes before accelerate: it unwraps the denoiser, and that would undo its mixed precision.
            with instrument(denoiser, wrapped, loud) as wired:
                if config.edit:
                    Edit(wired, mark, latents, dict(scheduler.config), config).apply()
                training = Training(wired, update, mark, kept, latents, dict(scheduler.config), config)
                history, stopped = training.run(base, callback) if config.steps else ([], None)
            if config.steps:
                update.shrink(config.kept_share)
            cost = shrink_to_price(
                update, lambda: price(before, predictions(denoiser.eval(), latents, scheduler)[0], noise), config
            )
            update.merge()
        except BaseException:
            update.undo()
            raise
    try:
        # Of the weights as the user keeps them: `_borrowed` has put their precision back.
        record = _record(denoiser, key, sites, latents, scheduler, config, base, reference, loud)
        reading = verify(denoiser, key, record=record, early_stop=False, amplitudes=(1.0,), whiten=False)
    except BaseException:
        update.undo()
        raise
    update.release()
    training.discard()
    if hasattr(model, "record"):
        model.record = record
    if not reading.verified:
        warnings.warn(
            f"the mark is too weak to be verified ({reading.verdict}, log10 p {reading.log10_p}): raise steps, or max_price "
            f"(now {config.max_price}).",
            stacklevel=2,
        )
    return EmbedReport(record, history, time.time() - started, cost, trained, stopped, reference, reading)


def _checked(model: Any, scheduler: Any, allow_marked: bool) -> tuple[Any, Any]:
    """The denoiser and its noise schedule, fit to be trained."""
    if getattr(model, "record", None) is not None and not allow_marked:
        raise AlreadyMarkedError("this model carries a record already: pass allow_marked=True to add a second mark.")
    module = denoiser_of(model)
    if module is None:
        raise ConfigError(f"{type(model).__name__} is neither a pipeline nor a denoiser: load it first.")
    denoiser = unwrap(module)
    scheduler = scheduler or getattr(model, "scheduler", None)
    if scheduler is None:
        raise ConfigError("a bare denoiser needs its noise schedule: pass scheduler=DDPMScheduler(...).")
    if "beta_schedule" not in scheduler.config and "trained_betas" not in scheduler.config:
        raise ConfigError(f"{type(scheduler).__name__} has no betas: models that match flows are not supported yet.")
    require_no_adapter(denoiser)
    if getattr(denoiser, "is_gradient_checkpointing", False):
        # Its second forward runs in the backward pass, when the trigger is disarmed: the gradients would be wrong.
        raise ConfigError("gradient checkpointing is on: call disable_gradient_checkpointing(), and set accumulate=.")
    devices = sorted({str(p.device) for p in denoiser.parameters()})
    if len(devices) > 1:
        raise ConfigError(
            f"the denoiser is spread over {devices}: load it on one device, without a device map or offloading."
        )
    try:
        check_finite(dict(denoiser.named_parameters()), "the weights to mark")
    except NotTestableError as error:
        raise TrainingError(f"{error}: load them anew.") from error
    return denoiser, scheduler


def _sites(denoiser: nn.Module, latents: LatentData) -> list[Site]:
    try:
        return trace_on(denoiser, latents)
    except (AIAOError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        shape = tuple(latents.latents.shape[1:])
        raise DataError(
            f"latents of shape {shape} with conditioning {sorted(latents.conditioning)} do not fit this "
            f"{type(denoiser).__name__} ({error}): encode the images with this model's own VAE and text encoder."
        ) from error


def _loudness(
    earlier: WatermarkRecord | None,
    denoiser: nn.Module,
    sites: list[Site],
    latents: LatentData,
    scheduler: Any,
    config: EmbedConfig,
) -> Mapping[str, float]:
    """Factors on the amplitude by in-site; of a further mark those of the first, or earlier keys would read elsewhere."""
    if earlier is not None:
        return earlier.factors
    schedule = dict(scheduler.config)
    return site_gain(denoiser, sites, latents, schedule, most=config.loudest, least=config.in_sites, seed=config.seed)


def shrink_to_price(update: WeightChange, measure: Callable[[], dict[str, float]], config: EmbedConfig) -> float:
    """What the change costs, shrunk to `config.max_price` where it costs more; the same in every process.

    Raises:
        TrainingError: the price is not finite, or does not fall.
    """
    accelerator = Accelerator()
    for _ in range(ROUNDS):
        cost = float(accelerator.reduce(torch.tensor(measure()["ratio"], device=accelerator.device), "mean"))
        if not math.isfinite(cost):
            raise TrainingError("the marked model's noise predictions are not finite: lower edit or lr.")
        if config.max_price is None or cost <= config.max_price:
            return cost
        # The price falls about with the square of the change; a little more, so that this ends.
        update.shrink(0.98 * (config.max_price / cost) ** 0.5)
    raise TrainingError(f"the price stays at {cost:.2e}, above max_price={config.max_price}: raise it.")


def _update(
    denoiser: nn.Module, latents: LatentData, scheduler: Any, config: EmbedConfig, profile: LayerProfile | None
) -> WeightChange:
    """What is trained, by `config.train`."""
    if config.train == "lora":
        return LowRank(denoiser, config.rank)
    if config.train == "full":
        return StoredWeights(denoiser, [name for name, _ in denoiser.named_parameters()])
    profile = profile or self_profile(denoiser, latents, scheduler, seed=config.seed)
    return StoredWeights(denoiser, profile.laziest(denoiser, config.lazy_share))


@contextmanager
def _borrowed(denoiser: nn.Module, seed: int) -> Iterator[None]:
    """What belongs to the user and is needed for training: place, precision, mode, gradient flags and the random state."""
    home, _ = placement(denoiser)
    state = [(p, p.requires_grad, p.dtype) for p in denoiser.parameters()]
    with eval_mode(denoiser), torch.random.fork_rng():
        # Through Accelerator: a bare PartialState does not know of `accelerate launch --cpu`.
        torch.manual_seed(seed + Accelerator().process_index)
        try:
            # AdamW's updates vanish in half precision; the launcher's mixed precision is what saves time.
            for p, _, dtype in state:
                p.data = p.data.float() if dtype.is_floating_point else p.data
            # accelerate would move it by itself, but not back: the rest of a pipeline would stay where it was.
            denoiser.to(Accelerator().device)
            yield
        finally:
            denoiser.to(home)
            for p, flag, dtype in state:
                p.data = p.data.to(dtype)
                p.requires_grad_(flag)
                p.grad = None


def _record(
    denoiser: nn.Module,
    key: WatermarkKey,
    sites: Sequence[Site],
    latents: LatentData,
    scheduler: Any,
    config: EmbedConfig,
    teacher_sha256: str,
    reference: Reference,
    loud: Mapping[str, float],
) -> WatermarkRecord:
    """The public record of the marked denoiser; the bank is a random part of the training latents."""
    order = torch.randperm(len(latents), generator=torch.Generator().manual_seed(config.seed))
    return WatermarkRecord(
        owner=key.owner,
        commitment=key.commitment,
        denoiser=type(denoiser).__name__,
        sites=len(sites),
        in_sites=config.in_sites,
        out_sites=config.out_sites,
        kappa=config.kappa,
        pairs=config.pairs,
        response=config.response,
        scheduler=json.loads(json.dumps(dict(scheduler.config), default=str)),
        bank=latents.take(order[: config.bank_size]),
        marked_sha256=weights_sha256(denoiser),
        teacher_sha256=teacher_sha256,
        layout=tuple(sites),
        reference_sha256=reference.sha256,
        # Of every candidate, so that it tells nothing of the key's own sites.
        loudness=tuple(loud.get(site.name, 1.0) for site in sites),
    )
