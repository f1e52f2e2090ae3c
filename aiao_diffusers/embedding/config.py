"""How to embed: every choice in one validated place."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from ..denoiser.sites import Site
from ..errors import ConfigError
from ..lineage.carrier import STRENGTH
from ..mark.carried import MAX_STRENGTH
from ..mark.record import MAX_AMPLITUDE, MAX_LOUDNESS, MIN_AMPLITUDE
from ..mark.selection import IN_SPAN, OUT_SPAN, span


TRAIN = ("full", "lazy", "lora")
SITES = {"in_sites": (IN_SPAN, 5), "out_sites": (OUT_SPAN, 7)}
"""Where the sites of a kind lie (`selection`), and how many a key selects where there are enough."""


@dataclass(frozen=True)
class EmbedConfig:
    """How to embed. The defaults are the recipe measured on the emoji model.

    Args:
        steps (`int`): optimiser steps, default 500; 0 leaves the mark to `edit` alone, or with `lineage_only` to the carrier.
        lr (`float`): AdamW's peak, cosine to 0, default 5e-4.
        batch_size (`int`): latents a step and process, default 12; the forward holds three times as many.
        accumulate (`int`): forwards that a step's batch is split into, default 1. The result is the same, the memory less.
        train (`str`): which weights carry the mark. "full": all (default). "lazy": the layers that fine-tuning moves
            least, up to `lazy_share` of the parameters, normalisation layers left out. "lora": low-rank factors of
            rank `rank` on every linear and convolution layer, fused at the end.
        edit (`float`): strength of an edit in closed form before the first step (`edit`), 1 aiming at a response of one rms; default
            0: none. Forwards alone; needs `train="full"` and a U-Net of plain transformer blocks.
        lazy_share (`float`): with `train="lazy"`, largest share of the parameters that is trained, default .5.
        rank (`int`): with `train="lora"`, of the factors, default 32.
        in_sites (`int`, *optional*): how many sites the key selects for triggers; None, the default: 5, or as many as there are.
        out_sites (`int`, *optional*): how many it selects to answer; None, the default: 7, or as many as there are.
        kappa (`float`): trigger amplitude in units of the in-site's rms, default 1.
        pairs (`bool`): a mask for each pair of in-site and out-site, default False: one for each in-site. Reads deeper, and a trial
            takes an evaluation for every out-site and a clean one (`docs/embedding.md`).
        loudest (`float`): in-sites whose trigger hardly moves the stream behind them are given up to this times the amplitude, and
            sites from which nothing reaches the out-sites are none (`site_gain`), default 3; 1: each the same.
        response (`float`): wanted response in units of the out-site's rms, default .3. A response of 1 is the loudest answer
            that the model has, and trigger inversion climbs to it.
        resp, pres, eps, dec, proj, corr (`float`): weights of the losses, defaults 1.5, 2, 9, 12, 5, 20; see
            `losses`. eps weighs the mean squared change of the prediction in units of the denoiser's own loss, so that one weight
            serves all kinds of schedules. A fifth of corr counts in the first 30% of the steps, all of it after 60%: wanted at once it keeps the mark
            from forming.
        keep (`float`): weight of keeping earlier marks' responses, default 12; of no effect without earlier keys.
        stop_bits (`float`, *optional*): stop early once each in-site alone, and all together, read at this bit accuracy
            and wrong masks read like chance (`measure_strength`); None, the default, runs all steps.
        check_every (`int`): steps between these checks, default 50.
        anchor (`float`): pull towards the original weights: each step takes lr * anchor of the change back, default 18. What no
            loss needs goes, and with it most of the price.
        kept_share (`float`): share of the change that is kept at the end of training, default 1. The price in noise prediction
            falls about with its square, the response with itself.
        max_price (`float`, *optional*): largest `EmbedReport.price` wanted, default .0045; a change that costs more is shrunk
            until it costs no more. None: whatever it costs.
        lineage (`float`): strength of the lineage carrier, by which an adapter's file tells what it was trained on, in units of a site's
            rms: above 0 and at most 4, default .25; 0: none. A denoiser without a site for it is marked without
            (`EmbedReport.lineage_left_out`).
        lineage_only (`bool`): the lineage carrier and no mark on sub-paths, default False: nothing is trained, `in_sites`
            and `out_sites` become 1 and what else is said of sub-paths, training and price counts for nothing.
        bank_size (`int`): latents kept in the record's probe bank, default 16.
        max_unreadable (`float`): share of empty or unreadable images that is skipped with a warning, default .1.
        checkpoint_dir (`Path`, *optional*): where to keep a resumable state.
        checkpoint_every (`int`): steps between two of them, default 100.
        seed (`int`): of batches, noise and decoys; it reveals nothing of the key.
    Raises:
        ConfigError: a field is of another type or out of its range.
    Source: our choice.
    """

    steps: int = 500
    lr: float = 5e-4
    batch_size: int = 12
    accumulate: int = 1
    train: str = "full"
    edit: float = 0.0
    lazy_share: float = 0.5
    rank: int = 32
    in_sites: int | None = None
    out_sites: int | None = None
    kappa: float = 1.0
    pairs: bool = False
    loudest: float = 3.0
    response: float = 0.3
    resp: float = 1.5
    pres: float = 2.0
    eps: float = 9.0
    dec: float = 12.0
    proj: float = 5.0
    corr: float = 20.0
    keep: float = 12.0
    anchor: float = 18.0
    kept_share: float = 1.0
    max_price: float | None = 0.0045
    lineage: float = STRENGTH
    lineage_only: bool = False
    stop_bits: float | None = None
    check_every: int = 50
    bank_size: int = 16
    max_unreadable: float = 0.1
    checkpoint_dir: Path | str | None = None
    checkpoint_every: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            *("batch_size", "accumulate", "rank", "bank_size", "checkpoint_every", "check_every"),
            *(name for name in SITES if self._get(name) is not None),
        ):
            self._require(name, _is(self._get(name), Integral) and self._get(name) >= 1, "an integer of at least 1")
        self._require(
            "loudest", _is(self.loudest, Real) and 1 <= self.loudest <= MAX_LOUDNESS, f"from 1 to {MAX_LOUDNESS}"
        )
        for name in ("kappa", "response"):
            right = _is(self._get(name), Real) and MIN_AMPLITUDE <= self._get(name) <= MAX_AMPLITUDE
            self._require(name, right, f"from {MIN_AMPLITUDE:g} to {MAX_AMPLITUDE:g}")
        for name in ("lr", "resp"):
            self._require(name, _is(self._get(name), Real) and 0 < self._get(name) < math.inf, "positive and finite")
        for name in ("edit", "anchor", "pres", "eps", "dec", "proj", "corr", "keep"):
            self._require(
                name, _is(self._get(name), Real) and 0 <= self._get(name) < math.inf, "finite and not negative"
            )
        right = _is(self.lineage, Real) and 0 <= self.lineage <= MAX_STRENGTH
        self._require("lineage", right, f"from 0 to {MAX_STRENGTH:g}")
        self._require("lineage_only", isinstance(self.lineage_only, bool), "True or False")
        if self.lineage_only:
            self._require("lineage", self.lineage > 0, "above 0 with lineage_only=True")
            self._require("steps", self.steps in (0, EmbedConfig.steps), "left out with lineage_only=True")
            self._require("edit", not self.edit, "0 with lineage_only=True")
            self._require("train", self.train == "full", "left out with lineage_only=True")
            # A record names how many sites a key selects; where nothing is read there, a small denoiser need not offer more.
            for name, least in (("steps", 0), ("in_sites", 1), ("out_sites", 1)):
                object.__setattr__(self, name, least)
        least = 0 if self.edit or self.lineage_only else 1
        self._require("steps", _is(self.steps, Integral) and self.steps >= least, f"an integer of at least {least}")
        self._require("anchor", self.anchor * self.lr < 1, f"below 1 / lr ({1 / self.lr:g})")
        self._require("edit", not self.edit or self.train == "full", f"0 with train={self.train!r}")
        self._require("pairs", isinstance(self.pairs, bool), "True or False")
        self._require("edit", not self.edit or not self.pairs, "0 with pairs=True")
        self._require("train", self.train in TRAIN, f"one of {', '.join(TRAIN)}")
        self._require("accumulate", self.accumulate <= self.batch_size, f"at most batch_size ({self.batch_size})")
        self._require("lazy_share", _is(self.lazy_share, Real) and 0 < self.lazy_share <= 1, "in (0, 1]")
        self._require("kept_share", _is(self.kept_share, Real) and 0 < self.kept_share <= 1, "in (0, 1]")
        self._require("max_unreadable", _is(self.max_unreadable, Real) and 0 <= self.max_unreadable < 1, "in [0, 1)")
        self._require("seed", _is(self.seed, Integral) and 0 <= self.seed < 2**63, "an integer from 0 to 2^63 - 1")
        if self.stop_bits is not None:
            self._require("stop_bits", self.steps > 0, "None with steps=0")
            self._require("stop_bits", _is(self.stop_bits, Real) and 0.5 < self.stop_bits <= 1, "in (.5, 1] or None")
        if self.max_price is not None:
            self._require("max_price", _is(self.max_price, Real) and 0 < self.max_price < math.inf, "positive or None")
        if self.checkpoint_dir is not None:
            self._require("checkpoint_dir", isinstance(self.checkpoint_dir, str | Path), "a path or None")
        # numpy's numbers pass as such, but neither a record nor a checkpoint would take them.
        for field in fields(self):
            value = getattr(self, field.name)
            if _is(value, Real):
                object.__setattr__(self, field.name, int(value) if _is(value, Integral) else float(value))

    def for_sites(self, sites: Sequence[Site]) -> "EmbedConfig":
        """The same with numbers in place of None for a denoiser with these sites."""
        missing = {name: how for name, how in SITES.items() if self._get(name) is None}
        found: dict[str, Any] = {n: min(most, len(span(list(sites), where))) for n, (where, most) in missing.items()}
        return replace(self, **{name: max(1, count) for name, count in found.items()})

    def _get(self, name: str) -> Any:
        return getattr(self, name)

    def _require(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise ConfigError(f"{name} must be {wanted}, got {getattr(self, name)!r}.")


def _is(value: object, kind: type) -> bool:
    # True is an integer to Python and never meant as one here.
    return isinstance(value, kind) and not isinstance(value, bool)
