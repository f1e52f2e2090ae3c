"""Committing, and embedding what was committed: whatever differs is refused before any step."""

import dataclasses
import json

import pytest
import torch
from _tiny import LEARN, commit_tiny, learner, mark_bound, mark_pairs

from aiao_diffusers import EmbedConfig, WatermarkKey, WatermarkRecord, embed, verify
from aiao_diffusers.embedding.commit import commit
from aiao_diffusers.errors import CommitmentError, ConfigError, KeyMismatchError, RecordError
from aiao_diffusers.mark.committed import canonical, commitment_document
from aiao_diffusers.protocol.commitment import Commitment


KEY = WatermarkKey(bytes(range(32)), "Demo")


@pytest.fixture(scope="module")
def bound():
    return mark_bound(steps=60)


def run(made, unet=None, key=KEY, **changes):
    model, data, scheduler = learner()
    config = EmbedConfig(**(LEARN | {"steps": 1} | changes))
    return embed(model if unet is None else unet, key, data, config, scheduler=scheduler, commitment=made)


class TestCommit:
    def test_leaves_the_model_as_it_is(self):
        unet, made = commit_tiny()
        assert all(
            torch.equal(a, b)
            for a, b in zip(unet.state_dict().values(), learner()[0].state_dict().values(), strict=True)
        )
        assert made.fields["key_sha256"] == KEY.fingerprint and KEY.secret.hex() not in made.document.decode()

    def test_two_runs_commit_to_the_same(self):
        assert commit_tiny()[1].sha256 == commit_tiny()[1].sha256

    def test_the_reference_is_the_one_named(self):
        unet, data, scheduler = learner()
        made, reference = commit(unet, KEY, data, EmbedConfig(**LEARN), scheduler=scheduler)
        assert reference.sha256 == made.fields["reference_sha256"]


class TestEmbed:
    def test_reads_and_its_controls_do_not(self, bound):
        marked, record = bound
        assert record.scheme == "aiao-2" and record.belongs_to(KEY) and not record.belongs_to(KEY.child("x"))
        options = {"record": record, "alpha": 1e-4}
        report = verify(marked, KEY, **options)
        assert (
            report.verified
            and report.dating["status"] == "undated"
            and report.hashes["commitment"] == record.commitment
        )
        assert verify(learner()[0], KEY, **options).verdict == "not_verified"
        assert verify(marked, KEY.child("x"), **options).verdict == "not_verified"

    def test_another_beacon_reads_nothing(self, bound):
        marked, record = bound
        other = commit_tiny("another")[1].to_record(record.marked_sha256)
        assert other.commitment == record.commitment and other.beacon != record.beacon
        assert verify(marked, KEY, record=other, alpha=1e-4).verdict == "not_verified"

    def test_the_record_goes_through_its_files(self, bound, tmp_path):
        record = bound[1]
        record.save(tmp_path)
        again = WatermarkRecord.load(tmp_path)
        assert again.sha256 == record.sha256 and again.companions == record.companions
        document = (tmp_path / "aiao" / "commitment.json").read_bytes()
        assert document == canonical(commitment_document(record.committed_fields()))

    @pytest.mark.parametrize("name", ["as_committed", "companions", "bank", "more"])
    def test_a_file_cannot_ask_for_less(self, bound, tmp_path, name):
        bound[1].save(tmp_path)
        path = tmp_path / "aiao" / "watermark.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: False}))
        with pytest.raises(RecordError, match=name):
            WatermarkRecord.load(tmp_path)

    def test_a_copy_to_read_with(self, bound):
        copy = bound[1].as_read(kappa=2.0)
        assert copy.kappa == 2.0 and copy.commitment == bound[1].commitment
        with pytest.raises(RecordError, match="changed after"):
            dataclasses.replace(copy, as_committed=True)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("kappa", 2.0),
            ("in_sites", 1),
            ("owner", "B"),
            ("pairs", True),
            ("teacher_sha256", "0" * 64),
            ("key_sha256", "0" * 64),
        ],
    )
    def test_a_record_changed_after_its_commitment(self, bound, field, value):
        with pytest.raises(RecordError, match="changed after the commitment"):
            dataclasses.replace(bound[1], **{field: value})

    def test_a_bank_changed_after_the_commitment(self, bound):
        bank = dataclasses.replace(bound[1].bank, latents=bound[1].bank.latents + 1)
        with pytest.raises(RecordError, match="changed after the commitment"):
            dataclasses.replace(bound[1], bank=bank)

    def test_fields_of_the_other_scheme(self, bound):
        with pytest.raises(RecordError, match="key_sha256"):
            dataclasses.replace(bound[1], scheme="aiao-1")
        with pytest.raises(RecordError, match="beacon"):
            dataclasses.replace(bound[1], beacon=None)


class TestRefusals:
    def test_no_beacon_yet(self):
        with pytest.raises(CommitmentError, match="no beacon"):
            run(commit_tiny(None)[1])

    def test_another_key(self):
        with pytest.raises(KeyMismatchError, match="another key"):
            run(commit_tiny()[1], key=KEY.child("x"))

    def test_another_model(self):
        unet = learner()[0]
        with torch.no_grad():
            unet.conv_in.weight.add_(0.1)
        before = unet.conv_in.weight.clone()
        with pytest.raises(CommitmentError, match="SHA-256"):
            run(commit_tiny()[1], unet)
        assert torch.equal(unet.conv_in.weight, before)

    @pytest.mark.parametrize("change", [{"out_sites": 2}, {"kappa": 2.0}, {"pairs": True}, {"response": 0.5}])
    def test_another_configuration(self, change):
        with pytest.raises(ConfigError, match=next(iter(change))):
            run(commit_tiny()[1], **change)

    def test_leaves_of_another_secret(self):
        made = commit_tiny()[1]
        with pytest.raises(CommitmentError, match="root"):
            run(Commitment({**made.fields, "leaves_sha256": "0" * 64}, made.bank, made.companions))

    def test_no_commitment(self):
        with pytest.raises(ConfigError, match="aiao commit"):
            run(mark_pairs()[1])

    def test_another_schedule(self):
        made = commit_tiny()[1]
        changed = {**made.fields, "scheduler": {**made.fields["scheduler"], "steps_offset": 3}}
        with pytest.raises(CommitmentError, match="scheduler"):
            run(Commitment(changed, made.bank, made.companions))
        assert json.loads(made.document)["aiao"] == 2
