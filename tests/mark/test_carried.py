"""The record's field on a lineage carrier: what it holds, what it refuses, and that a commitment covers it."""

import dataclasses
import json

import pytest
from _carried import text_unet
from _evidence import bound_record

from aiao_diffusers.errors import CommitmentError, RecordError
from aiao_diffusers.mark.carried import MAX_ARCHITECTURE_BYTES, carried, check_carried, lineage_document, parse_lineage
from aiao_diffusers.mark.committed import COMMITTED, commitment_document, commitment_sha256
from aiao_diffusers.mark.record import WatermarkRecord
from aiao_diffusers.protocol.commitment import parse_fields


FIELD = {"strength": 0.25, "architecture": {"in_channels": 4, "block_out_channels": [32, 64]}, "only": False}


def test_the_public_config_alone():
    field = carried(0.25, text_unet(), only=True)
    check_carried(field)
    assert field["strength"] == 0.25 and field["only"] is True and field == json.loads(json.dumps(field))
    assert field["architecture"]["in_channels"] == 4 and not any(n.startswith("_") for n in field["architecture"])


@pytest.mark.parametrize(
    "change",
    [
        {"strength": 0},
        {"strength": 4.5},
        {"strength": True},
        {"strength": "0.25"},
        {"strength": float("nan")},
        {"architecture": []},
        {"architecture": {"x": "a" * MAX_ARCHITECTURE_BYTES}},
        {"only": 1},
        {"more": 1},
    ],
)
def test_anything_else_is_refused(change):
    with pytest.raises(RecordError, match="lineage"):
        check_carried({**FIELD, **change})


@pytest.mark.parametrize("field", [[], "x", {}, {"strength": 0.25}])
def test_other_kinds_are_refused(field):
    with pytest.raises(RecordError, match="lineage"):
        check_carried(field)


def test_a_commitment_covers_it_and_is_as_before_without():
    fields = {**bound_record().committed_fields()}
    plain = commitment_document(fields)
    assert "lineage" not in plain
    digests = {commitment_sha256({**fields, "lineage": field}) for field in (None, FIELD, {**FIELD, "strength": 0.5})}
    assert len(digests) == 3 and commitment_sha256(fields) in digests
    document = commitment_document({**fields, "lineage": FIELD})
    assert document["lineage"]["strength"] == "0.25" and parse_lineage(lineage_document(FIELD)) == FIELD
    raw = json.dumps(document).encode()
    assert parse_fields(raw, "commitment.json")["lineage"] == FIELD
    assert set(parse_fields(json.dumps(plain).encode(), "commitment.json")) == set(COMMITTED)
    for broken in ("x", {"strength": "0.25"}, {**document["lineage"], "strength": "much"}):
        with pytest.raises(CommitmentError):
            parse_fields(json.dumps({**document, "lineage": broken}).encode(), "commitment.json")


def test_a_record_keeps_it_and_none_can_be_added_after_the_date(tmp_path):
    bound = bound_record()
    committed = {**bound.committed_fields(), "lineage": FIELD}
    record = dataclasses.replace(bound, lineage=FIELD, commitment=commitment_sha256(committed))
    record.save(tmp_path)
    assert WatermarkRecord.load(tmp_path).lineage == FIELD
    for other in (None, {**FIELD, "strength": 0.5}, {**FIELD, "architecture": {}}):
        with pytest.raises(RecordError, match="changed after the commitment"):
            dataclasses.replace(record, lineage=other)
    with pytest.raises(RecordError, match="changed after the commitment"):
        dataclasses.replace(bound, lineage=FIELD)
