"""A statement says what was read and nothing else; fields that are missing, unknown or at odds are refused by name."""

import dataclasses
import json
import random

import pytest
from _kind import FULL, extra

from aiao_diffusers.errors import AIAOError, AttestationError
from aiao_diffusers.protocol.attestation import (
    MAX_SUBJECTS,
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    STATEMENT_TYPE,
    Statement,
    Subject,
    open_statement,
    sign_statement,
)
from aiao_diffusers.protocol.dsse import MAX_PAYLOAD, seal
from aiao_diffusers.protocol.signer import Signer


extra("cryptography")

SIGNER, OTHER = Signer(bytes(range(32))), Signer(bytes(32))
REPORT = {
    "verdict": "verified",
    "log10_p": -9.25,
    "alpha": 1e-6,
    "suspect": "é/",
    "plan": {},
    "dating": {},
    "hashes": {},
}
STATEMENT = Statement(
    subject=(Subject("unet/a.safetensors", "a" * 64), Subject("acme/x", "b" * 40, "gitCommit")),
    report=REPORT,
    record={"scheme": "aiao-2", "commitment": "c" * 64, "sha256": "d" * 64},
    origin={"repo": "acme/x", "commit": "b" * 40},
    files={"report.json": "e" * 64},
    versions={"torch": "2.6"},
    time="2026-12-01T06:00:00+00:00",
    signer=SIGNER.public.keyid,
)


def with_report(**fields):
    return dataclasses.replace(STATEMENT, report={**REPORT, **fields})


def payload(change):
    document = json.loads(STATEMENT.to_bytes())
    change(document)
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


class TestStatement:
    def test_is_an_in_toto_statement(self):
        document = json.loads(STATEMENT.to_bytes())
        assert document["_type"] == STATEMENT_TYPE == "https://in-toto.io/Statement/v1"
        assert document["predicateType"] == PREDICATE_TYPE and set(document) == {
            "_type",
            "subject",
            "predicateType",
            "predicate",
        }
        assert document["subject"][0] == {"name": "unet/a.safetensors", "digest": {"sha256": "a" * 64}}
        assert document["predicate"]["report"] == REPORT

    def test_bytes_depend_on_no_order(self):
        turned = {name: REPORT[name] for name in reversed(REPORT)}
        assert dataclasses.replace(STATEMENT, report=turned).to_bytes() == STATEMENT.to_bytes()
        assert STATEMENT.to_bytes().isascii() and b" " not in STATEMENT.to_bytes().replace(b"not testable", b"")

    def test_round_trip(self):
        envelope = sign_statement(STATEMENT, SIGNER)
        assert open_statement(envelope, SIGNER.public) == STATEMENT
        assert json.loads(envelope)["payloadType"] == PAYLOAD_TYPE == "application/vnd.in-toto+json"
        assert sign_statement(STATEMENT, SIGNER) == envelope

    def test_of_another_signer(self):
        with pytest.raises(AttestationError, match="names signer"):
            sign_statement(STATEMENT, OTHER)
        with pytest.raises(AttestationError, match="keyid"):
            open_statement(sign_statement(STATEMENT, SIGNER), OTHER.public)
        with pytest.raises(AttestationError, match="signer in the statement"):
            open_statement(seal(STATEMENT.to_bytes(), PAYLOAD_TYPE, OTHER), OTHER.public)

    def test_too_large(self):
        with pytest.raises(AttestationError, match="report less"):
            sign_statement(with_report(more="x" * MAX_PAYLOAD), SIGNER)

    @pytest.mark.parametrize("verdict", ["not_verified", "not_testable"])
    def test_other_verdicts(self, verdict):
        made = with_report(verdict=verdict, log10_p={"not_verified": -2.0, "not_testable": None}[verdict])
        assert Statement.from_bytes(made.to_bytes()) == made


BAD_REPORTS = {
    "verdict unknown": ({"verdict": "true"}, "verdict is 'true'"),
    "verdict no text": ({"verdict": ["verified"]}, "verdict is"),
    "verified by a large p": ({"log10_p": -5.9}, "contradicts log10_p"),
    "not verified by a small p": ({"verdict": "not_verified"}, "contradicts log10_p"),
    "verified without p": ({"log10_p": None}, "log10_p is None"),
    "p above 1": ({"verdict": "not_verified", "log10_p": 0.5}, "log10_p is 0.5"),
    "p no number": ({"log10_p": "-9"}, "log10_p is '-9'"),
    "p true": ({"log10_p": True}, "log10_p is True"),
    "p infinite": ({"log10_p": float("-inf")}, "log10_p is -inf"),
    "p beyond numbers": ({"log10_p": -(10**400)}, "log10_p is"),
    "alpha 1": ({"alpha": 1.0}, "alpha is 1.0"),
    "alpha missing": ({"alpha": None}, "alpha is None"),
    "suspect no text": ({"suspect": 5}, "suspect is 5"),
    "plan missing": ({"plan": None}, "plan is None"),
    "dating a list": ({"dating": []}, "dating is"),
    "hashes a text": ({"hashes": "x"}, "hashes is 'x'"),
}
BAD_FIELDS = {
    "no subject": ({"subject": ()}, "subject names 1 to"),
    "too many": ({"subject": tuple(Subject(f"{n}", "a" * 64) for n in range(MAX_SUBJECTS + 1))}, "subject names"),
    "a subject twice": ({"subject": STATEMENT.subject[:1] * 2}, "each once"),
    "record lacks a field": ({"record": {"scheme": "aiao-2"}}, "record lacks"),
    "record's hash": ({"record": {**STATEMENT.record, "sha256": "D" * 64}}, "SHA-256 of 'record'"),
    "file's digest": ({"files": {"report.json": "e" * 63}}, "SHA-256 of 'report.json'"),
    "files no object": ({"files": ["x"]}, "files is"),
    "origin unknown field": (
        {"origin": {"repo": "a", "commit": "b", "url": "c"}},
        "origin lacks or does not know 'url'",
    ),
    "version no text": ({"versions": {"torch": 2}}, "'torch' is 2"),
    "time without zone": ({"time": "2026-12-01T06:00:00"}, "with a time zone"),
    "time none": ({"time": 5}, "time is 5"),
    "signer": ({"signer": "x"}, "SHA-256 of 'signer'"),
}
BAD_PAYLOADS = {
    "another type": (lambda d: d.update(_type="https://in-toto.io/Statement/v0.1"), "_type is"),
    "another version": (
        lambda d: d.update(predicateType=PREDICATE_TYPE[:-1] + "2"),
        "predicateType is.*install its version",
    ),
    "unknown field": (lambda d: d.update(more=1), "'more'"),
    "no predicate": (lambda d: d.update(predicate=None), "predicate is None"),
    "predicate lacks": (lambda d: d["predicate"].pop("files"), "'files'"),
    "predicate knows not": (lambda d: d["predicate"].update(more=1), "'more'"),
    "subject no list": (lambda d: d.update(subject={}), "subject is"),
    "subject no object": (lambda d: d.update(subject=["x"]), "a subject is 'x'"),
    "subject with more": (lambda d: d["subject"][0].update(uri="x"), "'uri'"),
    "two digests": (lambda d: d["subject"][0]["digest"].update(sha512="x"), "2 digests"),
    "weak digest": (lambda d: d["subject"][0].update(digest={"md5": "a" * 32}), "which is none"),
    "digest as name": (lambda d: d["subject"][0].update(digest="x"), "digest is 'x'"),
    "half a character": (lambda d: d["predicate"]["report"].update(suspect="\ud800"), "cannot be written"),
}


@pytest.mark.parametrize("name", BAD_REPORTS)
def test_a_report_that_contradicts_itself(name):
    fields, said = BAD_REPORTS[name]
    with pytest.raises(AttestationError, match=said):
        with_report(**fields)


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_bad_fields(name):
    fields, said = BAD_FIELDS[name]
    with pytest.raises(AttestationError, match=said):
        dataclasses.replace(STATEMENT, **fields)


@pytest.mark.parametrize("name", BAD_PAYLOADS)
def test_bad_payloads(name):
    change, said = BAD_PAYLOADS[name]
    with pytest.raises(AttestationError, match=said):
        open_statement(seal(payload(change), PAYLOAD_TYPE, SIGNER), SIGNER.public)


def test_another_spelling_and_no_json():
    for text in (
        json.dumps(json.loads(STATEMENT.to_bytes())).encode(),
        STATEMENT.to_bytes().replace(b"-9.25", b"-9.250"),
    ):
        with pytest.raises(AttestationError, match="spelled in another way"):
            Statement.from_bytes(text)
    for text, said in (
        (b"[]", "list"),
        (b"{", "not valid JSON"),
        (b'{"a":NaN}', "NaN"),
        (b'{"a":1,"a":1}', "duplicate"),
    ):
        with pytest.raises(AttestationError, match=said):
            Statement.from_bytes(text)
    for depth in (40, 900, 100_000):
        nested = b'"plan":' + b'{"a":' * depth + b"1" + b"}" * depth
        with pytest.raises(AttestationError, match="deeper than 32|not valid JSON"):
            Statement.from_bytes(STATEMENT.to_bytes().replace(b'"plan":{}', nested))
    with pytest.raises(AttestationError, match="name is"):
        Subject("", "a" * 64)


def test_no_signed_bytes_end_in_anything_but_a_typed_error():
    """Of a signer who signs whatever he likes: refused or read, never a crash; read only where it is spelled as written."""
    dice, whole, read = random.Random(1), STATEMENT.to_bytes(), 0
    rounds = 5000 if FULL else 300
    for _ in range(rounds):
        content = bytearray(whole)
        for _ in range(dice.choice([1, 1, 3])):
            place = dice.randrange(len(content))
            piece = dice.choice(
                [b"[", b"{}", b"null", b"1e999", b"-", b'"', b"\\ud800", b"9" * 5000, bytes([dice.randrange(256)])]
            )
            content[place : place + dice.choice([0, 1, 12])] = piece
        try:
            found = Statement.from_bytes(bytes(content))
        except AIAOError as error:
            assert isinstance(error, AttestationError) and len(str(error)) < 1000
        else:
            read += 1
            assert found.to_bytes() == content
    assert read < 0.1 * rounds
