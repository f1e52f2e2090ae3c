"""A claim becomes a record of either scheme, valid where one may be; unchecked it says whatever it says."""

import pytest

from aiao_diffusers.bench.audits.forged_claim import FIELDS
from aiao_diffusers.errors import CommitmentError, RecordError
from aiao_diffusers.mark.committed import commitment_sha256
from aiao_diffusers.protocol.beacon import by_hand


def test_both_schemes_say_the_same_and_are_valid(scene):
    claim, beacon = scene.honest, by_hand("a draw")
    first, second = claim.unbound(), claim.bound(beacon)
    assert all(getattr(first, name) == getattr(second, name) == claim.fields[name] for name in FIELDS)
    assert (first.scheme, second.scheme) == ("aiao-1", "aiao-2") and second.beacon == beacon.randomness.hex()
    assert first.belongs_to(claim.key) and second.belongs_to(claim.key)
    assert second.commitment == commitment_sha256(second.committed_fields()) == claim.bound(by_hand("b")).commitment
    assert second.drawn(claim.key) != first.drawn(claim.key) == claim.key


@pytest.mark.parametrize("fields", [{"kappa": 1e9}, {"sites": 7}, {"loudness": (1e-300,) * 11}, {"in_sites": 0}])
def test_what_no_record_may_say_is_refused_and_read_unchecked(scene, fields):
    claim = scene.honest.with_fields(**fields)
    with pytest.raises(RecordError):
        claim.unbound()
    with pytest.raises(CommitmentError):
        claim.bound(by_hand("a draw"))
    name, value = next(iter(fields.items()))
    assert getattr(claim.unchecked(), name) == value


def test_an_honest_claim_names_no_twin_and_no_reference(scene):
    fields = scene.honest.fields
    assert fields["teacher_sha256"] is fields["reference_sha256"] is None and fields["owner"] == "Claimant"
