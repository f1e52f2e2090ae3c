"""The ablation "per-pair masks": at an in-site each out-site has a mask of its own, so one pass asks one out-site.

Everything else is our own embedding: the same sites, losses, steps, pull towards the original weights and limit on the price.
Reading takes a forward for each out-site where ours takes one for all, so a trial costs as many times more.
"""

import dataclasses
import math
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...embed import EmbedConfig, embed, priced
from ...errors import ConfigError
from ...fidelity import predictions, price
from ...hashes import weights_sha256
from ...key import WatermarkKey
from ...looks import Looks, answering, key_sites
from ...probe import Coordinates, Reading, Wired, probe
from ...record import WatermarkRecord
from ...subpath import SubPath
from ...training import Batch, Mark, Training
from ...trigger import channel_axis
from ...update import StoredWeights
from ..registry import method
from ..scene import Scene
from .outcome import Outcome, outcome_of_looks


def key_of(key: WatermarkKey, out_site: str) -> WatermarkKey:
    """Whose trigger masks ask this out-site; its response patterns are of no use."""
    return key.child(f"pair/{out_site}")


@method("paired")
@dataclass(frozen=True)
class Paired(EmbedConfig):
    """Fields as in `EmbedConfig`; `train` is full, nothing is edited, no checkpoints."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train != "full" or self.edit or self.checkpoint_dir is not None or self.stop_bits is not None:
            raise ConfigError("method 'paired' takes train: full, and neither edit, checkpoint_dir nor stop_bits.")

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting, so that results end with the defaults they were measured under."""
        return dataclasses.asdict(self)

    def embed(self, denoiser: nn.Module, key: WatermarkKey, scene: Scene, folder: Path) -> None:
        """Our own training with other masks; the record is that of an ordinary mark, none of which hangs on masks."""
        fields: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(EmbedConfig)}
        config = EmbedConfig(**fields | {"seed": scene.seed})
        one = dataclasses.replace(config, steps=1, max_price=None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one step marks nothing, nor is it meant to
            record = embed(scene.copy_of_base(), key, scene.owner, one, scheduler=scene.scheduler).record
        mark = Mark(key, *key_sites(denoiser, key, record))
        before, noise = predictions(denoiser, scene.owner, scene.scheduler)
        update = StoredWeights(denoiser, [name for name, _ in denoiser.named_parameters()])
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            names = [site.name for site in (*mark.ins, *mark.outs)]
            with probe(denoiser, names, record.factors) as wired:
                training = PairedTraining(wired, update, mark, (), scene.owner, dict(scene.scheduler.config), config)
                training.run(weights_sha256(denoiser))
        update.shrink(config.kept_share)
        priced(
            update, lambda: price(before, predictions(denoiser.eval(), scene.owner, scene.scheduler)[0], noise), config
        )
        update.keep()
        denoiser.requires_grad_(False)
        dataclasses.replace(record, marked_sha256=weights_sha256(denoiser)).save(folder)

    def verify(
        self,
        denoiser: nn.Module,
        key: WatermarkKey,
        scene: Scene,
        folder: Path,
        *,
        alpha: float,
        trials: int,
        seed: int,
    ) -> Outcome:
        """Our own looks, each out-site under its own masks."""
        record = WatermarkRecord.load(folder)
        looks = PairedLooks(key, record, *key_sites(denoiser, key, record), alpha, trials, seed)
        looks.escalate(denoiser, gradual=True, early_stop=False)
        alone, tests = looks.plain.alone, looks.tests
        return outcome_of_looks(
            looks.sequence.verdict,
            looks.sequence.log10_p,
            sum(t.hits for t in tests) / sum(t.channels for t in tests),
            looks.to_dicts(),
            passed=sum(p <= math.log10(alpha) for p in alone),
            trials=len(alone),
            evals=looks.evaluations,
        )


class PairedTraining(Training):
    """Every row asks one out-site, by the masks of its pairs."""

    @cached_property
    def pairs(self) -> dict[str, torch.Tensor]:
        """The masks of each in-site, a row an out-site: `(out-sites, C)`."""
        mark = self.mark
        table = [Mark(key_of(mark.key, out.name), mark.ins, ()).masks(self.device) for out in mark.outs]
        return {site.name: torch.stack([masks[site.name] for masks in table]) for site in mark.ins}

    def draw(self) -> Batch:
        """See `Training`; the decoys of a row are as far from its own masks."""
        self.asked = torch.randint(len(self.mark.outs), (self.config.batch_size,))
        self.masks = {name: rows[self.asked] for name, rows in self.pairs.items()}
        return super().draw()

    def terms(
        self,
        entered: dict[str, torch.Tensor],
        wanted: dict[str, torch.Tensor],
        power: dict[str, torch.Tensor],
        batch: Batch,
        part: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """See `Training`; a row's response counts at the out-site that it asks."""
        found = super().terms(entered, wanted, power, batch, part)
        wrong = []
        for number, (name, s) in enumerate(self.patterns.items()):
            rows = (self.asked[part.cpu()] == number).nonzero().flatten()
            triggered, target = entered[name].chunk(3)[1][rows].float(), wanted[name][rows].float()
            axes = tuple(axis for axis in range(1, target.ndim) if axis != channel_axis(target))
            answer = (triggered - target).mean(axes) / (self.config.response * power[name].sqrt())
            wrong.append((answer - s).square().mean(1))
        return found | {"resp": torch.cat(wrong).mean()}


class PairedLooks(Looks):
    """A trial forwards once for each out-site."""

    def trial(
        self,
        wired: Wired,
        subpath: SubPath,
        amplitude: float,
        through: Coordinates | None,
        who: str = "the suspect",
    ) -> list[Reading]:
        """See `Looks`; the same inputs for every out-site."""
        sample, t, keywords = self.draw_input(wired)
        self.evaluations += 2 * len(subpath.out_sites)
        found = []
        with answering(who):
            for site in subpath.out_sites:
                asked, kappa = key_of(self.key, site.name), self.record.kappa * amplitude
                path = SubPath(subpath.in_sites, (site,))
                found += wired.read(asked, path, kappa, sample, t, keywords, through)
        return found
