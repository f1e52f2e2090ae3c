"""What the file of an adapter under verification says of the model that it was trained on, for the report."""

from typing import Any

from ..lineage.reading import read_lineage
from ..mark.key import WatermarkKey
from ..protocol.leaves import LeafKey
from .plan import ReadingPlan
from .suspect import Suspect


def read_adapter_lineage(found: Suspect, key: WatermarkKey, plan: ReadingPlan) -> dict[str, Any] | None:
    """The reading of an adapter's file alone, as plain data.

    None of other suspects, and for a leaf, which tells of no other label than its own.

    Args:
        found: as opened. key: as the record expands it. plan: whose alpha and commitments count here too.
    Raises:
        SuspectError, UnsafeFileError: as `read_lineage`.
    """
    if found.adapter_file is None or isinstance(key, LeafKey):
        return None
    reading = read_lineage(found.adapter_file, key, found.denoiser, alpha=plan.alpha, factor=plan.commitments)
    return reading.to_dict()
