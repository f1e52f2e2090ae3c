"""`aiao check`, and `aiao verify --attest` that writes what it reads."""

import json

import pytest
from _kind import extra
from _shipped import ASSETS

from aiao_diffusers.protocol.signer import Signer


extra("cryptography")


@pytest.fixture
def signer(tmp_path):
    path = tmp_path / "signer.key"
    Signer(bytes(range(32))).save_new(path)
    return path


@pytest.mark.slow
class TestEvidence:
    def test_travels(self, aiao, key, signer, tmp_path):
        folder, pub = tmp_path / "evidence", tmp_path / "signer.pub"
        words = ("verify", ASSETS / "marked", "--key", key)
        made = aiao(*words, "--attest", signer, "-o", folder, "--json")
        assert made.code == 0 and made.json["verdict"] == "verified" and "evidence" in made.err
        found = aiao("check", folder, "--json")
        assert found.code == 0 and found.json["log10_p"] == made.json["log10_p"] and not found.json["vouched"]
        text = aiao("check", folder, "--signer", pub, "--suspect", ASSETS / "marked", "--key", key)
        assert text.code == 0 and "the same by a new reading" in text.out and "which you named" in text.out
        aiao("check", folder, "--suspect", ASSETS / "base").refused("AttestationError", "other files")
        aiao(*words, "--attest", signer, "-o", folder).refused("OutputExistsError", folder)
        (folder / "report.json").write_text("{}")
        aiao("check", folder).refused("AttestationError", "report.json", "SHA-256")

    def test_of_no_mark_has_the_code_of_verify(self, aiao, key, signer, tmp_path):
        words = ("verify", ASSETS / "base", "--key", key, "--record", ASSETS / "marked", "--fast", "--attest", signer)
        assert aiao(*words, "-o", tmp_path / "e").code == aiao("check", tmp_path / "e").code == 3

    def test_of_what_changes_no_denoiser(self, aiao, key, signer, tmp_path):
        (tmp_path / "control").mkdir()
        (tmp_path / "control" / "config.json").write_text('{"_class_name": "ControlNetModel"}')
        words = ("verify", tmp_path / "control", "--key", key, "--record", ASSETS / "marked", "--attest", signer)
        assert aiao(*words, "-o", tmp_path / "e").code == aiao("check", tmp_path / "e").code == 4
        again = aiao("check", tmp_path / "e", "--suspect", tmp_path / "control", "--key", key, "--json")
        assert again.code == 4 and again.json["recomputed"]

    def test_of_an_adapter_is_read_on_its_base(self, aiao, key, signer, tmp_path):
        words = ("--key", key, "--base", ASSETS / "marked")
        made = aiao("verify", ASSETS / "lora", *words, "--attest", signer, "-o", tmp_path / "e")
        assert made.code == aiao("check", tmp_path / "e", "--suspect", ASSETS / "lora", *words).code == 0
        other = ("--key", key, "--base", ASSETS / "base")
        aiao("check", tmp_path / "e", "--suspect", ASSETS / "lora", *other).refused("AttestationError", "hashes: base")


class TestRefused:
    def test_one_of_two_options(self, aiao, key, signer, tmp_path):
        words = ("verify", ASSETS / "marked", "--key", key)
        aiao(*words, "--attest", signer).refused("ConfigError", "-o FOLDER")
        aiao(*words, "-o", tmp_path / "e").refused("ConfigError", "--attest SIGNER.KEY")

    def test_before_any_reading(self, aiao, key, signer, tmp_path):
        words = ("verify", tmp_path / "gone", "--key", key, "--attest", signer, "-o")
        signer.chmod(0o644)
        aiao(*words, tmp_path / "e").refused("KeyFileError", f"chmod 600 {signer}")
        signer.chmod(0o600)
        aiao(*words, tmp_path).refused("OutputExistsError", tmp_path)
        aiao(*words, tmp_path / "e").refused("SuspectError", "gone")

    def test_of_check(self, aiao, key, tmp_path):
        aiao("check", tmp_path / "gone").refused("AttestationError", "gone", "--attest")
        aiao("check", tmp_path).refused("AttestationError", "a.key")
        aiao("check", tmp_path, "--key", key).refused("ConfigError", "--suspect")
        aiao("check", tmp_path, "--key", key, "--leaf", key).refused("ConfigError", "--leaf")
        aiao("check", tmp_path, "--signer", key).refused("KeyFileError", key)


def test_a_key_that_signs(aiao, tmp_path):
    path = tmp_path / "signer.key"
    made = aiao("keygen", "--signer", "-o", path, "--json")
    assert made.code == 0 and made.json["keyid"] == Signer.load(path).public.keyid
    assert json.loads(made.out)["public"] == str(tmp_path / "signer.pub")
    aiao("keygen", "--signer", "-o", path).refused("KeyFileError", path, "exists")
    aiao("keygen", "--signer", "--owner", "Acme", "-o", tmp_path / "b.key").refused("ConfigError", "--owner")
    aiao("keygen", "-o", tmp_path / "b.key").refused("ConfigError", "--owner NAME")
