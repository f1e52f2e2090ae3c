"""What embedding did: the record to publish, the curves, the price."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..deprecation import renamed_attribute
from ..files.figure import new_figure
from ..lineage.carrier import CarrierReport
from ..mark.record import WatermarkRecord
from ..verification.reference import Reference
from ..verification.report import VerificationReport


@dataclass(frozen=True)
class EmbedReport:
    """The result of `embed`.

    Args:
        record (`WatermarkRecord`): what to publish beside the weights.
        history: one row a step: `loss`, each unweighted term of it, and at the steps where `measure_strength` looked `bits`,
            `weakest` and `wrong_log10_p`.
        seconds (`float`): wall time.
        price (`float`): mean |eps_marked - eps_clean|^2 over the clean twin's own noise loss; .01 is one percent.
        trained (`int`): parameters that were trained.
        stopped (`int`, *optional*): the step of an early stop.
        reading (`VerificationReport`, *optional*): what the owner's key reads in the marked weights, by plain looks over 8 trials; it
            names the key's sites, so keep it in private.
        lineage (`CarrierReport`, *optional*): which sites carry a direction for adapters to inherit, and what it changed.
        lineage_left_out (`str`): why no site does, else "".
        others (`Mapping[str, EmbedReport]`): of a pipeline with two denoisers the second one's report by its name; `record` reads both.
        reference (`Reference`, *optional*): for reading through disguises (`align`): keep it, or the clean twin, in private.
    """

    record: WatermarkRecord
    history: list[dict[str, float]] = field(repr=False)
    seconds: float
    price: float
    trained: int = 0
    stopped: int | None = None
    reference: Reference | None = field(default=None, repr=False)
    reading: VerificationReport | None = field(default=None, repr=False)
    lineage: CarrierReport | None = field(default=None, repr=False)
    lineage_left_out: str = ""
    others: "Mapping[str, EmbedReport]" = field(default_factory=dict, repr=False)

    fidelity = renamed_attribute("fidelity", "price")

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the probe bank."""
        return {
            "commitment": self.record.commitment,
            "steps": len(self.history),
            "stopped": self.stopped,
            "trained": self.trained,
            "seconds": self.seconds,
            "price": self.price,
            "fidelity": self.price,  # its former name, which files and scripts go by
            "verdict": self.reading.verdict if self.reading else None,
            "log10_p": self.reading.log10_p if self.reading else None,
            "lineage": self.lineage.to_dict() if self.lineage else None,
            "lineage_left_out": self.lineage_left_out,
            "last": self.history[-1] if self.history else {},
            **({"others": {name: other.to_dict() for name, other in self.others.items()}} if self.others else {}),
        }

    def plot(self) -> Any:
        """A matplotlib figure: every term of the loss over the steps, and what the early-stop checks read.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        checks = [(step, row) for step, row in enumerate(self.history, 1) if "bits" in row]
        figure = new_figure(8, 6 if checks else 3.5)
        rows = figure.subplots(2 if checks else 1, squeeze=False, sharex=True)[:, 0]
        shown = ("bits", "weakest", "wrong_log10_p", "agreement")
        names = [name for name in (self.history[0] if self.history else {}) if name not in shown]
        for name in names:
            rows[0].plot(range(1, len(self.history) + 1), [row[name] for row in self.history], label=name, linewidth=1)
        rows[0].set_ylabel("loss terms, unweighted")
        if names:
            rows[0].set_yscale("log")
            rows[0].legend(ncols=4, fontsize="small")
        if checks:
            for name in ("bits", "weakest"):
                rows[1].plot([step for step, _ in checks], [row[name] for _, row in checks], marker="o", label=name)
            rows[1].axhline(0.5, color="black", linewidth=0.5)
            rows[1].set_ylabel("bit accuracy")
            rows[1].legend(fontsize="small")
        rows[-1].set_xlabel("step")
        return figure
