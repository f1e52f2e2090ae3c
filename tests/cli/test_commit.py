"""`aiao commit`: a commitment made, drawn and embedded from the command line, and what is refused."""

import json

import pytest
from _tiny import learner
from diffusers import DDPMPipeline

from aiao_diffusers import WatermarkRecord
from aiao_diffusers.protocol.commitment import Commitment


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    unet, data, scheduler = learner()
    DDPMPipeline(unet, scheduler).save_pretrained(folder / "base")
    data.save(folder / "latents.safetensors")
    return folder


SITES = ("--in-sites", 2, "--out-sites", 4)


@pytest.fixture
def made(aiao, key, model, tmp_path):
    path = tmp_path / "c" / "commitment.json"
    data = model / "latents.safetensors"
    answer = aiao("commit", "--key", key, "--record-of", model / "base", "--data", data, "-o", path, *SITES)
    assert answer.code == 0 and Commitment.load(path).sha256 in answer.out and "not dated yet" in answer.out
    return path


class TestSteps:
    def test_commit_draw_embed(self, aiao, key, model, made, tmp_path):
        names = {path.name for path in made.parent.iterdir()}
        assert names == {"commitment.json", "commitment.probe.safetensors", "commitment.reference.safetensors"}
        drawn = aiao(
            "commit", made, "--by-hand", "4 8 15 16 23 42", "--place", "https://example.org/notary/7", "--json"
        )
        assert drawn.code == 0 and drawn.json["beacon"]["source"] == "by_hand" and not drawn.json["dated"]
        out = tmp_path / "marked"
        words = ("--data", model / "latents.safetensors", "--steps", 1, "--max-price", 0, *SITES)
        answer = aiao("embed", model / "base", "--key", key, "-o", out, "--commitment", made, *words, "--json")
        assert answer.code == 0, answer.err
        record = WatermarkRecord.load(out)
        assert record.scheme == "aiao-2" and record.commitment == drawn.json["commitment"]
        assert json.loads((out / "aiao" / "commitment.places.json").read_text()) == ["https://example.org/notary/7"]
        read = aiao("verify", out, "--key", key, "--json", "--fast")
        assert read.json["dating"]["places"] == ["https://example.org/notary/7"]
        assert "by hand" in read.json["dating"]["assumption"] and read.json["verdict"] == "not_verified"
        leaf = tmp_path / "leaf.json"
        shown = aiao("disclose", out, "--key", key, "--leaf", 1, "-o", leaf, "--json")
        assert shown.code == 0 and shown.json["of"] == 2
        assert aiao("verify", out, "--leaf", leaf, "--fast", "--json").json["plan"]["leaves"] > 1
        assert (
            aiao("verify", out, "--key", key, "--fast", "--commitments", 9, "--json").json["plan"]["commitments"] == 9
        )

    def test_what_was_committed_to_is_not_typed_twice(self, aiao, key, model, tmp_path):
        path, words = tmp_path / "commitment.json", ("--data", model / "latents.safetensors", "--json")
        made = aiao("commit", "--key", key, "--record-of", model / "base", "-o", path, "--lineage-only", *words)
        assert made.code == 0, made.err
        assert aiao("commit", path, "--by-hand", "4 8 15 16 23 42").code == 0
        embedding = ("embed", model / "base", "--key", key, "--commitment", path, *words, "-o", tmp_path / "out")
        aiao(*embedding, "--lineage", 0.5).refused("ConfigError", "--lineage)", "0.25")
        aiao(*embedding, "--in-sites", 5).refused("ConfigError", "--in-sites", "--lineage-only", "leave them out")
        assert not (tmp_path / "out").exists()
        done = aiao(*embedding)
        assert done.code == 0, done.err
        record = WatermarkRecord.load(tmp_path / "out")
        assert record.lineage is not None and record.lineage["only"] and record.scheme == "aiao-2"
        aiao("verify", tmp_path / "out", "--key", key, "--clean-twin", model / "base").refused(
            "ConfigError", "--clean-twin"
        )

    def test_embedding_waits_for_the_beacon(self, aiao, key, model, made, tmp_path):
        answer = aiao("embed", model / "base", "--key", key, "-o", tmp_path / "out", "--commitment", made)
        answer.refused("CommitmentError", "--beacon drand")
        assert not (tmp_path / "out").exists()


class TestRefusals:
    def test_never_overwritten(self, aiao, key, model, made):
        before = made.read_bytes()
        answer = aiao("commit", "--key", key, "--record-of", model / "base", "-o", made)
        answer.refused("OutputExistsError", made)
        assert made.read_bytes() == before

    @pytest.mark.parametrize(
        ("words", "parts"),
        [
            (("--seed", 3), ("--seed",)),
            (("--key", "a.key"), ("--key",)),
            (("--beacon", "drand"), ("--tsa",)),
            (("--token", "no.tsr"), ("no.tsr",)),
            (("--by-hand", "a", "--authority", "root.pem"), ("--authority",)),
            (("--by-hand", "a", "--beacon", "drand"), ("--by-hand",)),
        ],
    )
    def test_of_a_commitment_that_is_there(self, aiao, made, words, parts):
        aiao("commit", made, *words).refused("ConfigError", *parts)

    def test_of_a_new_one(self, aiao, key, model, tmp_path):
        aiao("commit").refused("ConfigError", "--record-of")
        aiao("commit", "--record-of", model / "base").refused("ConfigError", "--key")
        words = ("--key", key, "--record-of", model / "base", "-o", tmp_path / "c.json")
        aiao("commit", *words, "--by-hand", "x").refused("ConfigError", "after the date")
        assert {path.name for path in tmp_path.iterdir()} == {"a.key"}

    def test_a_second_draw(self, aiao, made):
        assert aiao("commit", made, "--by-hand", "a").code == 0
        aiao("commit", made, "--by-hand", "b").refused("CommitmentError", "never replaced")

    def test_a_broken_one(self, aiao, made):
        made.write_text(made.read_text()[:-9])
        aiao("commit", made, "--by-hand", "a").refused("CommitmentError", made)
