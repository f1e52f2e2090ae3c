"""An evidence folder appears whole; every other folder is refused with what differs."""

import json
import random
import shutil

import pytest
from _evidence import OTHER, SIGNER, authority, bound_record, reported, save_suspect
from _kind import FULL, extra
from _shipped import ASSETS
from _tampering import STATEMENT, TAMPERING, resign
from _tiny import learner

from aiao_diffusers import WatermarkRecord
from aiao_diffusers.errors import (
    AIAOError,
    AttestationError,
    ConfigError,
    KeyFileError,
    OutputExistsError,
    RecordError,
    SuspectError,
)
from aiao_diffusers.protocol.attestation import PAYLOAD_TYPE, Statement
from aiao_diffusers.protocol.dsse import seal, unseal
from aiao_diffusers.verification.check_evidence import check_evidence
from aiao_diffusers.verification.evidence_folder import find_record_read, open_evidence, write_evidence


extra("cryptography")


@pytest.fixture(scope="module")
def suspect(tmp_path_factory):
    return save_suspect(tmp_path_factory.mktemp("suspect"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, suspect):
    folder = tmp_path_factory.mktemp("evidence") / "whole"
    return write_evidence(reported(), suspect, bound_record(), SIGNER, folder)


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "evidence")


class TestWritten:
    def test_holds_what_a_judge_needs_and_no_secret(self, whole):
        names = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
        beside = (
            "watermark.json",
            "probe.safetensors",
            "commitment.json",
            "commitment.tsr",
            "commitment.beacon.json",
            "commitment.places.json",
        )
        assert names == {STATEMENT, "signer.pub", "report.json", "report.md", *(f"aiao/{name}" for name in beside)}
        assert SIGNER.seed not in b"".join((whole / name).read_bytes() for name in names)
        assert SIGNER.seed.hex() not in (whole / STATEMENT).read_text()
        assert WatermarkRecord.load(whole).sha256 == bound_record().sha256

    def test_opens_again(self, whole):
        found = open_evidence(whole)
        assert found.statement.report == reported().to_dict() and not found.vouched
        assert {one.name for one in found.statement.subject} == {"config.json", "diffusion_pytorch_model.safetensors"}
        assert set(found.statement.versions) == {"aiao_diffusers", "torch", "diffusers"}
        assert open_evidence(str(whole), SIGNER.public).vouched

    @pytest.mark.parametrize("verdict", ["not_verified", "not_testable"])
    def test_of_other_verdicts(self, suspect, tmp_path, verdict):
        made = write_evidence(reported(verdict), suspect, bound_record(), SIGNER, tmp_path / "e")
        assert open_evidence(made).statement.report["verdict"] == verdict
        assert (made / "report.md").read_text().startswith(f"# {verdict}")

    def test_of_a_record_that_binds_nothing(self, suspect, begun, tmp_path):
        record = begun[1]
        record.save(tmp_path / "marked")
        report = reported(hashes={"record": record.sha256})
        made = write_evidence(report, suspect, tmp_path / "marked", SIGNER, tmp_path / "e")
        assert sorted(path.name for path in (made / "aiao").iterdir()) == ["probe.safetensors", "watermark.json"]
        assert open_evidence(made).record.sha256 == record.sha256


MISUSE = {
    "a model in memory": (lambda: {"suspect": learner()[0]}, ConfigError, "in memory"),
    "no suspect": (lambda: {"suspect": "gone/at/all"}, SuspectError, "gone"),
    "no record": (lambda: {"record": None}, RecordError, "pass it"),
    "another record": (lambda: {"record": ASSETS / "marked"}, AttestationError, "pass that one"),
    "no signer": (lambda: {"signer": "none.key"}, KeyFileError, "none.key"),
    "a report at odds": (lambda: {"report": reported(log10_p=-1.0)}, AttestationError, "contradicts"),
}


class TestNothingIsLeft:
    @pytest.mark.parametrize("what", MISUSE)
    def test_of_misuse(self, suspect, tmp_path, what):
        make, error, said = MISUSE[what]
        given = {"report": reported(), "suspect": suspect, "record": bound_record(), "signer": SIGNER, **make()}
        with pytest.raises(error, match=said):
            write_evidence(*given.values(), tmp_path / "new" / "e")
        assert not (tmp_path / "new" / "e").exists() and list(tmp_path.rglob("*.json")) == []

    def test_another_folder_is_never_touched(self, suspect, tmp_path):
        (tmp_path / "e").mkdir()
        with pytest.raises(OutputExistsError, match="exists"):
            write_evidence(reported(), suspect, bound_record(), SIGNER, tmp_path / "e")
        assert list((tmp_path / "e").iterdir()) == []
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        with pytest.raises(OutputExistsError, match="link"):
            write_evidence(reported(), suspect, bound_record(), SIGNER, tmp_path / "link")


class TestRecordThatWasRead:
    def test_is_found_by_its_hash(self, whole):
        assert find_record_read(reported(), ASSETS / "marked", whole).sha256 == bound_record().sha256
        assert find_record_read(reported("not_testable"), ASSETS / "marked").owner == "Demo"

    def test_on_the_hub_at_the_commit_that_was_read(self, whole, hub, api):
        api.create_repo("owner/x")
        api.upload_folder(repo_id="owner/x", folder_path=whole, allow_patterns="aiao/*")
        source = {"suspect": {"repo": "owner/x", "commit": api.model_info("owner/x").sha}}
        api.delete_folder("aiao", "owner/x")
        found = find_record_read(reported(source=source), "owner/x")
        assert found.sha256 == bound_record().sha256

    def test_is_asked_for(self, tmp_path):
        with pytest.raises(RecordError, match="--record"):
            find_record_read(reported(), ASSETS / "marked", tmp_path)


@pytest.mark.parametrize("name", TAMPERING)
def test_tampering_is_refused_with_what_differs(folder, name):
    act, said = TAMPERING[name]
    act(folder)
    with pytest.raises(AttestationError, match=said) as refusal:
        check_evidence(folder, authorities=authority().root_pem)
    assert len(str(refusal.value)) < 1500


def test_the_statement_of_another_folder(folder, suspect, tmp_path):
    other = write_evidence(reported("not_verified"), suspect, bound_record(), SIGNER, tmp_path / "other")
    shutil.copy(other / STATEMENT, folder / STATEMENT)
    with pytest.raises(AttestationError, match=r"report\.json has SHA-256"):
        open_evidence(folder)


def test_a_subject_s_digest_changed_by_the_signer_is_another_statement_and_by_others_refused(folder):
    def change(document):
        document["subject"][0]["digest"]["sha256"] = "0" * 64

    resign(change, OTHER)(folder)
    with pytest.raises(AttestationError, match="keyid"):
        open_evidence(folder)


def test_everything_signed_anew_by_somebody_else_is_refused_by_who_names_the_signer(folder, suspect, tmp_path):
    forged = write_evidence(reported("not_verified"), suspect, bound_record(), OTHER, tmp_path / "forged")
    assert not open_evidence(forged).vouched  # whole in itself, and nobody vouches for it
    with pytest.raises(AttestationError, match="not that signer's report"):
        open_evidence(forged, SIGNER.public)


def test_a_file_that_cannot_be_read(folder, monkeypatch):
    def fail(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("aiao_diffusers.verification.evidence_folder._sha256", fail)
    with pytest.raises(AttestationError, match="Permission denied"):
        open_evidence(folder)


def test_no_folder(tmp_path):
    for path in (tmp_path / "gone", __file__):
        with pytest.raises(AttestationError, match="is no folder"):
            open_evidence(path)


@pytest.mark.slow
def test_no_changed_byte_of_any_file_is_accepted(folder, whole):
    """A typed error for each, whatever was changed; nothing crashes."""
    dice = random.Random(2)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    for _ in range(5000 if FULL else 300):
        name = dice.choice(files)
        before = (whole / name).read_bytes()
        content = bytearray(before)
        place = dice.randrange(len(content))
        piece = dice.choice([b"", b"\0", b'"', b"{}", b"null", bytes([dice.randrange(256)])])
        content[place : place + dice.choice([0, 1, 1, 9])] = piece
        if bytes(content) == before:
            continue
        (folder / name).write_bytes(content)
        with pytest.raises(AttestationError):
            open_evidence(folder)
        (folder / name).write_bytes(before)
    assert open_evidence(folder).statement.report["verdict"] == "verified"


@pytest.mark.slow
def test_no_statement_that_a_signer_makes_up_ends_in_a_crash(folder):
    dice = random.Random(3)
    payload = unseal((folder / STATEMENT).read_bytes(), PAYLOAD_TYPE, SIGNER.public)
    values = [None, True, -1, 1.5, "", "x", "0" * 64, [], {}, ["x"], {"x": 1}, 10**30, "\u202e"]
    for _ in range(5000 if FULL else 300):
        document = json.loads(payload)
        spot = document
        while True:
            name = dice.choice(list(spot) if isinstance(spot, dict) else range(len(spot)))
            if not isinstance(spot[name], dict | list) or not spot[name] or dice.random() < 0.2:
                break
            spot = spot[name]
        spot[name] = dice.choice(values)
        content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        (folder / STATEMENT).write_bytes(seal(content, PAYLOAD_TYPE, SIGNER))
        try:
            found = open_evidence(folder)
        except AIAOError as error:
            assert isinstance(error, AttestationError)
        else:
            # Only what no other file repeats may differ: the rest was refused.
            assert found.statement.report == Statement.from_bytes(payload).report
