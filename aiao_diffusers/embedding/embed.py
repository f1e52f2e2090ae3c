"""Embed a key's mark into a denoiser: losses over clean, triggered and decoy passes.

Each step forwards one batch in three equal parts with the same latents, timesteps and conditioning: clean, triggered
(the key's masks at a random set of in-sites) and decoy (wrong masks). The model as it was before, its clean twin, gives
the targets.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ..denoiser.encode import prepare
from ..denoiser.hashes import weights_sha256
from ..denoiser.instrument import instrument
from ..mark.committed import LINEAGE
from ..mark.key import WatermarkKey
from ..mark.mark import Mark
from ..mark.record import WatermarkRecord
from ..verification.report import VerificationReport
from ..verification.verify import verify
from .borrow import KeptWeights, borrow, undo_on_failure
from .closed_form import Edit
from .commit import committed_config, expect_clean_twin, open_commitment
from .config import EmbedConfig
from .layer_profile import LayerProfile, self_profile
from .lineage_change import LineageChange
from .public_record import make_record
from .report import EmbedReport
from .shrink import PriceMeter, shrink_to_price
from .subject import CleanTwin, Subject, choose_marks, observe_clean_twin
from .training import Callback, Training
from .validation import check_earlier_marks, choose_denoisers, find_trainable, refuse_for_several, trace_sites
from .weight_change import LowRank, StoredWeights, WeightChange


__all__ = ["EmbedConfig", "EmbedReport", "embed"]


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
    commitment: Any = None,
    denoiser: str | None = None,
    pipeline_options: Mapping[str, Any] | None = None,
) -> EmbedReport:
    """Embed `key` into a pipeline's (or a bare) denoiser, in place.

    Under `accelerate launch` or `torchrun` every process calls this with the same arguments; each draws batches of its
    own, all end with the same weights, and one of them should save. Mixed precision is the launcher's. Training is on the device
    that accelerate finds; the denoiser comes back to its own.

    Args:
        model: a diffusers pipeline, or a denoiser together with `scheduler`.
        key (`WatermarkKey`): whose mark is embedded.
        data: see `aiao_diffusers.denoiser.encode.prepare`; None lets the model make its own latents.
        config (`EmbedConfig`, *optional*): default: the recipe measured on the emoji model.
        callback: called after each step with `(step, losses)`.
        scheduler: the noise schedule, a diffusers scheduler of betas or of flow matching; default: the pipeline's.
        allow_marked (`bool`, defaults to False): embed a further key into a model that carries a record already; the new
            record takes the old one's place, so keep a copy of that.
        keep: keys of earlier marks, embedded with as many sites, that must go on reading; a mark not named here weakens.
        earlier (`WatermarkRecord`, *optional*): the record of earlier marks, whose trigger amplitudes and kind of masks
            (`EmbedConfig.pairs`, else ConfigError) a further mark shares; default: the pipeline's.
        profile (`LayerProfile`, *optional*): which layers are lazy, for `train="lazy"`; None: a short fine-tune tells.
        commitment (*optional*): a `Commitment` with its beacon, or its file (`commit`): the mark is then of scheme `aiao-2`, whose
            p-value no record can forge. None: of `aiao-1`, whose p holds where key and record were fixed beforehand.
        denoiser (`str`, *optional*): of a pipeline with two denoisers, such as Wan 2.2's, the name of the one to mark
            ("transformer_2"); None: both under the one key, so that the first one's record reads either.
        pipeline_options (`Mapping[str, Any]`, *optional*): keywords of the pipeline's call, such as height and width, with which
            pictures and prompts become the denoiser's inputs; default: the pipeline's own.
    Returns:
        `EmbedReport`; its `record` is what to publish beside the weights.
    Raises:
        AlreadyMarkedError, DataError, SiteError, ConfigError: the model, the data or the configuration do not fit.
        CommitmentError, KeyMismatchError: the commitment is of another model or key, altered, or has no beacon yet.
        TrainingError: a loss is not finite, or the disk is full.
    On any exception, also Ctrl-C, the denoiser gets its weights back; with `checkpoint_dir` the next call goes on from the
    last checkpoint. With `train="lora"` the weights cannot be restored once the factors have been merged, just before the
    record is hashed. Warns when the mark does not verify in the end.
    """
    chosen = choose_denoisers(model, denoiser)
    earlier = earlier or getattr(model, "record", None)
    wish = _Wish(key, data, config, callback, keep, earlier, profile, commitment, pipeline_options)
    if len(chosen) > 1:
        refuse_for_several(chosen, {"commitment": commitment, "keep": keep, "earlier": earlier, "profile": profile})
    trainable = {name: find_trainable(model, scheduler, allow_marked, name) for name in chosen}
    reports: dict[str, EmbedReport] = {}
    with undo_on_failure(*(KeptWeights(module) for module, _ in trainable.values() if len(chosen) > 1)):
        for name, found in trainable.items():
            reports[name] = _mark_one(model, found, wish)
            # One record reads them all: the same gains, and checkpoints that do not meet.
            wish = wish.beside(name, reports[chosen[0]].record)
    first, *others = reports
    if hasattr(model, "record"):
        model.record = reports[first].record
    return replace(reports[first], others={name: reports[name] for name in others})


class _Wish(NamedTuple):
    """What `embed` was asked for, beside the denoiser."""

    key: WatermarkKey
    data: Any
    config: EmbedConfig | None
    callback: Callback | None
    keep: Sequence[WatermarkKey]
    earlier: WatermarkRecord | None
    profile: LayerProfile | None
    commitment: Any
    pipeline_options: Mapping[str, Any] | None

    def beside(self, name: str, first: WatermarkRecord) -> "_Wish":
        """The same for a denoiser beside `name`, with the first one's gains and checkpoints of its own."""
        config = self.config
        if config is not None and config.checkpoint_dir is not None:
            config = replace(config, checkpoint_dir=Path(config.checkpoint_dir) / f"after-{name}")
        return self._replace(config=config, earlier=first)


def _mark_one(model: Any, found: tuple[Any, Any], wish: _Wish) -> EmbedReport:
    """Mark one denoiser of `model`, found with its scheduler."""
    started, bound, (denoiser, scheduler) = time.time(), None, found
    key, config, keep, earlier = wish.key, wish.config, wish.keep, wish.earlier
    if wish.commitment is not None:
        bound, key = open_commitment(wish.commitment, key)
        config = committed_config(bound, config)
    config = config or EmbedConfig()
    if earlier is not None:
        keep = [earlier.drawn(kept) for kept in keep]
    check_earlier_marks(keep, earlier, config)
    latents = prepare(model, wish.data, max_unreadable=config.max_unreadable, options=wish.pipeline_options)
    subject = Subject(denoiser, scheduler, latents, trace_sites(denoiser, latents), config)
    carrier = LineageChange(subject, key, required=bound is not None and bound.fields.get(LINEAGE) is not None)
    with borrow(denoiser, config.seed):
        clean_twin = observe_clean_twin(subject, earlier) if bound is None else expect_clean_twin(subject, bound)
        marks = choose_marks(subject, clean_twin.gains, (key, *keep))
        carrier.attempt()
        meter, update = PriceMeter(subject), choose_update(subject, wish.profile)
        trained = sum(p.numel() for p in update.parameters.values()) if config.steps else 0
        with undo_on_failure(carrier, update):
            training = _train(subject, clean_twin, marks, update, meter.base_loss, wish.callback)
            price = shrink_to_price(update, meter, config.max_price)
            update.merge()
            carrier.add()
    with undo_on_failure(carrier, update):
        # Of the weights as the user keeps them: `borrow` has put their precision back.
        if bound is None:
            record = make_record(subject, key, clean_twin, carrier.field)
        else:
            record = bound.to_record(weights_sha256(denoiser))
        reading = verify(denoiser, key, record=record, early_stop=False, amplitudes=(1.0,), whiten=False)
    carrier.release()
    update.release()
    training.discard()
    _warn_of_weakness(reading, config)
    seconds, reference = time.time() - started, clean_twin.reference
    told = carrier.report, carrier.left_out
    return EmbedReport(record, training.history, seconds, price, trained, training.stopped, reference, reading, *told)


def choose_update(subject: Subject, profile: LayerProfile | None) -> WeightChange:
    """What is trained, by `EmbedConfig.train`."""
    denoiser, config = subject.denoiser, subject.config
    if config.train == "lora":
        return LowRank(denoiser, config.rank)
    if config.train == "full":
        return StoredWeights(denoiser, [name for name, _ in denoiser.named_parameters()])
    profile = profile or self_profile(denoiser, subject.data, subject.scheduler, seed=config.seed)
    return StoredWeights(denoiser, profile.laziest(denoiser, config.lazy_share))


def _train(
    subject: Subject,
    clean_twin: CleanTwin,
    marks: Sequence[Mark],
    update: WeightChange,
    base_loss: float,
    callback: Callback | None,
) -> Training:
    """The finished run: the closed form first, then the steps, each where the configuration wants it."""
    config, names = subject.config, dict.fromkeys(site.name for m in marks for site in (*m.ins, *m.outs))
    # The sites are wrapped before accelerate wraps the whole: `instrument` unwraps the denoiser, and that would undo mixed
    # precision.
    with instrument(subject.denoiser, list(names), clean_twin.gains) as instrumented:
        if config.edit:
            Edit(instrumented, marks[0], subject.data, subject.schedule, config).apply()
        training = Training(instrumented, update, marks, subject.data, subject.schedule, config, base_loss)
        if config.steps:
            training.run(clean_twin.sha256, callback)
    if config.steps:
        update.shrink(config.kept_share)
    return training


def _warn_of_weakness(reading: VerificationReport, config: EmbedConfig) -> None:
    if not reading.verified:
        raised = f"lineage (now {config.lineage:g})"
        if not config.lineage_only:
            raised = f"steps, or max_price (now {config.max_price})"
        warnings.warn(
            f"the mark is too weak to be verified ({reading.verdict}, log10 p {reading.log10_p}): raise {raised}.",
            stacklevel=3,
        )
