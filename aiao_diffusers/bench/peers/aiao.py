"""Our mark, as a method of the benchmark; its ablations are settings of `EmbedConfig`."""

import dataclasses
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...embedding.commit import commit
from ...embedding.embed import EmbedConfig, embed
from ...embedding.layer_profile import LayerProfile, self_profile
from ...errors import ConfigError
from ...formats.checkpoint import load_denoiser
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...protocol.beacon import by_hand
from ...verification.verify import verify
from ..context import AttackContext
from ..registry import known, method
from .outcome import Outcome, outcome_of_looks


CARRIERS = ("lazy", "busy", "random")


@method("aiao")
@dataclass(frozen=True)
class AIAO(EmbedConfig):
    """`EmbedConfig` and, for a model that is marked already: `marked`, its folder, and `key`, the key file.

    `twin`: look at what the suspect answers beyond the clean twin too, whatever the looks before it say.
    Reading may escalate where plain looks do not verify: `aligned`, to an alignment, for which the owner lays the clean twin
    open; `healed`, to a short key-blind fine-tune of the suspect on the owner's data.
    `committed`: under scheme `aiao-2`, committed to beforehand; its beacon is drawn by hand, from the seed.
    `carrier`: with `train: lazy`, which layers those are by a short fine-tune of the base on the owner's data: `lazy` ones, or,
    to see what that choice is worth, `busy` or `random` ones.
    Ablations: no decoys `dec: 0, proj: 0, corr: 0`; one fixed sub-path `in_sites: 1, out_sites: 1`.
    """

    marked: str = ""
    key: str = ""
    twin: bool = False
    aligned: bool = False
    healed: bool = False
    committed: bool = False
    carrier: str = "lazy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.marked) != bool(self.key):
            raise ConfigError("a mark that is made already names both 'marked' and 'key'.")
        if known("carrier", self.carrier, CARRIERS) != "lazy" and self.train != "lazy":
            raise ConfigError(f"carrier '{self.carrier}' takes train: lazy, got '{self.train}'.")

    @property
    def sources(self) -> tuple[str, ...]:
        """What it reads beside the context; part of a cell's identity."""
        return (self.marked, self.key) if self.marked else ()

    @property
    def settings(self) -> dict[str, Any] | None:
        """Every setting of a mark that is made here, so that results end with the defaults they were measured under."""
        # Not where these are off: such marks were made, and results kept, before there was a choice.
        later = ("pairs", "committed")
        found = {name: value for name, value in dataclasses.asdict(self).items() if name not in later or value}
        return None if self.marked else found

    def own_key(self, key: WatermarkKey, context: AttackContext) -> WatermarkKey:
        """The key of a shipped model, else the benchmark's."""
        if not self.key:
            return key
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # git keeps no file modes; a benchmark's key is public anyway
            return WatermarkKey.load(context.find(self.key))

    def embed(self, denoiser: nn.Module, key: WatermarkKey, context: AttackContext, folder: Path) -> None:
        """By `aiao_diffusers.embed` with these settings."""
        if self.marked:
            loaded = load_denoiser(context.find(self.marked))
            try:
                denoiser.load_state_dict(loaded.state_dict())
            except RuntimeError as error:
                raise ConfigError(
                    f"the marked model '{self.marked}' is of another architecture than the model of this suite: leave out "
                    "--model, or take a suite that embeds marks of its own."
                ) from error
            WatermarkRecord.load(context.find(self.marked)).save(folder)
            return
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(EmbedConfig)}
        config = EmbedConfig(**fields | {"seed": context.seed})
        options: dict[str, Any] = {"scheduler": context.scheduler}
        if self.committed:
            made = commit(denoiser, key, context.owner, config, **options).commitment
            beacon = by_hand(f"benchmark, seed {context.seed}").to_dict()
            options["commitment"] = made.with_companions(beacon=json.dumps(beacon).encode())
        if self.train == "lazy":
            options["profile"] = self._profile(denoiser, context)
        embed(denoiser, key, context.owner, config, **options).record.save(folder)

    def _profile(self, denoiser: nn.Module, context: AttackContext) -> LayerProfile:
        """Whose laziest layers are those of `carrier`."""
        found = self_profile(denoiser, context.owner, context.scheduler, seed=context.seed)
        drawn = torch.rand(len(found.layers), generator=context.generator).tolist()
        order = {"lazy": lambda x, r: x.change, "busy": lambda x, r: -x.change, "random": lambda x, r: r}[self.carrier]
        layers = (dataclasses.replace(x, change=order(x, r)) for x, r in zip(found.layers, drawn, strict=True))
        return dataclasses.replace(found, layers=tuple(layers))

    def verify(
        self,
        denoiser: nn.Module,
        key: WatermarkKey,
        context: AttackContext,
        folder: Path,
        *,
        alpha: float,
        trials: int,
        seed: int,
    ) -> Outcome:
        """By `aiao_diffusers.verify`, all plain trials and looks of the first amplitude; louder ones where none verified."""
        record = WatermarkRecord.load(folder)
        options: dict[str, Any] = {"alpha": alpha, "trials": trials, "seed": seed, "early_stop": False}
        if self.twin:
            options["clean_twin"] = context.base
        if self.aligned:
            options["reference"] = context.base
        if self.healed:
            options["healing"] = context.owner
        report = verify(denoiser, key, record=record, **options)
        return outcome_of_looks(
            report.verdict,
            report.log10_p,
            report.bit_accuracy,
            report.looks,
            passed=round((report.verification_rate or 0) * report.trials),
            trials=report.trials,
            evals=report.denoiser_evals,
        )
