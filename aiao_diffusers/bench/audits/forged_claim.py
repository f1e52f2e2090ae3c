"""What a dishonest claimant hands over: a key, a record that suits it, and files beside it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from ...denoiser.inputs import LatentData
from ...mark.committed import COMMITTED, canonical, leaf_hashes, merkle_root
from ...mark.key import BOUND_SCHEME, WatermarkKey
from ...mark.record import WatermarkRecord, bank_sha256
from ...protocol.beacon import Beacon
from ...protocol.commitment import Commitment
from ...verification.reference import Reference


_OF_THE_BINDING = frozenset({"scheme", "key_sha256", "leaves_sha256", "probe_sha256"})
FIELDS = tuple(name for name in COMMITTED if name not in _OF_THE_BINDING)
"""Of a record: what its writer chooses, whatever the scheme."""


class UncheckedRecord(WatermarkRecord):
    """A record taken at its word, to show what a claimant would have reached: none of its fields is checked."""

    def __post_init__(self) -> None:
        """Nothing, where a record checks its fields."""


@dataclass(frozen=True)
class Claim:
    """One claimant's evidence, not yet checked by anyone.

    Args:
        key (`WatermarkKey`): without a beacon.
        fields (`Mapping[str, Any]`): of the record (`FIELDS`). bank (`LatentData`): its probe bank.
        suspect_sha256 (`str`): of the unmarked model, which the record calls the marked one.
        clean_twin (`nn.Module`, *optional*), reference (`Reference`, *optional*): what is handed over beside the record.
    """

    key: WatermarkKey
    fields: Mapping[str, Any]
    bank: LatentData
    suspect_sha256: str
    clean_twin: nn.Module | None = field(default=None, repr=False)
    reference: Reference | None = field(default=None, repr=False)

    def with_fields(self, **changes: Any) -> "Claim":
        """The same with other fields in the record."""
        return replace(self, fields={**self.fields, **changes})

    def unchecked(self) -> UncheckedRecord:
        """What to read with if a record were believed."""
        return UncheckedRecord(commitment=self.key.commitment, bank=self.bank, **self.fields)

    def unbound(self) -> WatermarkRecord:
        """The record of scheme `aiao-1`, valid for all that its commitment says.

        Raises:
            RecordError: a field that no record may have.
        """
        known: dict[str, Any] = {"commitment": self.key.commitment, "marked_sha256": self.suspect_sha256}
        return WatermarkRecord(bank=self.bank, **known, **self.fields)

    def commit(self) -> Commitment:
        """The commitment of scheme `aiao-2`, before its beacon is drawn.

        Raises:
            CommitmentError: a field that no record may have.
        """
        leaves = leaf_hashes(self.key, list(self.fields["layout"]), pairs=self.fields["pairs"])
        binding = {
            "scheme": BOUND_SCHEME,
            "key_sha256": self.key.fingerprint,
            "leaves_sha256": merkle_root(leaves).hex(),
            "probe_sha256": bank_sha256(self.bank),
        }
        return Commitment({**self.fields, **binding}, self.bank)

    def bound(self, beacon: Beacon) -> WatermarkRecord:
        """The record of scheme `aiao-2` under this beacon.

        Raises:
            CommitmentError: a field that no record may have.
        """
        drawn = self.commit().with_companions(beacon=canonical(beacon.to_dict()))
        return drawn.to_record(self.suspect_sha256)


def honest_claim(key: WatermarkKey, record: WatermarkRecord, suspect_sha256: str) -> Claim:
    """A claim that says nothing but the truth of an unmarked model, for which `record` fits but for its key: where forgeries begin."""
    fields = {name: getattr(record, name) for name in FIELDS}
    fields |= {"owner": key.owner, "pairs": False, "teacher_sha256": None, "reference_sha256": None}
    return Claim(key, fields, record.bank, suspect_sha256)
