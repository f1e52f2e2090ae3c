"""The lineage carrier as a part of embedding: tried before any training, put in after it, taken back where embedding fails.

After training, for what it changes is exact: the mark on sub-paths reads as it did before.

Source: our choice.
"""

from typing import Any

from ..errors import AlreadyMarkedError, ConfigError, SiteError
from ..lineage.carrier import CarrierReport, add_carrier
from ..lineage.sites import plan_carrier
from ..mark.carried import carried
from ..mark.key import WatermarkKey
from .borrow import KeptWeights
from .subject import Subject


class LineageChange:
    """A carrier in the making.

    Args:
        subject (`Subject`): `config.lineage` is the strength, 0 for none; `config.lineage_only`: there is nothing else.
        key (`WatermarkKey`): the owner's, as the mark's scheme expands it.
        required (`bool`): a commitment names the carrier, so a model that cannot have one is refused.

    Attributes:
        left_out (`str`): why there is none, else "".
        report (`CarrierReport`, *optional*): once it is there.
    """

    def __init__(self, subject: Subject, key: WatermarkKey, *, required: bool = False) -> None:
        self.subject, self.key = subject, key
        self.report: CarrierReport | None = None
        self.left_out = "" if subject.config.lineage else "lineage=0"
        self.required = required or subject.config.lineage_only
        self._kept: KeptWeights | None = None

    def attempt(self) -> None:
        """Put the carrier in and take it back, so that what cannot be done is known before any work.

        Raises:
            SiteError: the model has no site for it and must have one. AlreadyMarkedError: this key's carrier is there already.
            NotTestableError: quantised or offloaded weights.
        """
        if self.left_out:
            return
        try:
            self.add()
        except SiteError as error:
            if self.required:
                raise
            self.left_out = str(error)
        except AlreadyMarkedError as error:
            raise AlreadyMarkedError(f"{error} Mark with another key, or pass lineage=0 (--lineage 0).") from error
        finally:
            self.undo()

    def add(self) -> None:
        """Put the carrier in, unless it was left out."""
        if self.left_out:
            return
        subject, config = self.subject, self.subject.config
        self._kept = KeptWeights(subject.denoiser)
        self.report = add_carrier(
            subject.denoiser,
            self.key,
            subject.data,
            scheduler=subject.scheduler,
            strength=config.lineage,
            seed=config.seed,
        )
        self._kept.drop_unchanged()

    def undo(self) -> None:
        """Take it back; of no effect before `add` and after `release`."""
        if self._kept is not None:
            self._kept.undo()
        self.release()
        self.report = None

    def release(self) -> None:
        """The end: `undo` is of no use any more."""
        self._kept = None

    @property
    def field(self) -> dict[str, Any] | None:
        """The record's field `lineage`."""
        if self.report is None:
            return None
        return carried(self.report.strength, self.subject.denoiser, only=self.subject.config.lineage_only)


def planned_field(subject: Subject) -> dict[str, Any] | None:
    """The same before embedding, for a commitment.

    Raises:
        ConfigError: nothing would be embedded, for the carrier alone was wanted and the model has no site for it.
    """
    config = subject.config
    if config.lineage and plan_carrier(subject.denoiser).sites:
        return carried(config.lineage, subject.denoiser, only=config.lineage_only)
    if config.lineage_only:
        raise ConfigError(
            f"{type(subject.denoiser).__name__} has no site for a carrier, and lineage_only=True embeds nothing else."
        )
    return None
