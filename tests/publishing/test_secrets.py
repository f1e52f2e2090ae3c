"""A secret is found in any spelling, in file names too, and never told."""

import base64
import os

import pytest
import torch
from _shipped import ASSETS
from safetensors.torch import save_file

from aiao_diffusers import WatermarkKey
from aiao_diffusers.errors import PushRefusedError
from aiao_diffusers.publishing.secrets import check_secrets


DEMO = WatermarkKey(bytes(range(32)), "Demo")


KEY = WatermarkKey(bytes.fromhex("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"), "Acme Labs")


SPELLINGS = {
    "raw": KEY.secret,
    "hex": KEY.secret.hex().encode(),
    "HEX": KEY.secret.hex().upper().encode(),
    "base64": base64.b64encode(KEY.secret),
    "base64 at another alignment": base64.b64encode(b"x" + KEY.secret + b"y"),
    "base64 at the third alignment": base64.b64encode(b"xy" + KEY.secret),
    "url-safe base64": base64.urlsafe_b64encode(KEY.secret),
    "first half": KEY.secret[:16],
    "last half in hex": KEY.secret[16:].hex().encode(),
    "24 bytes from the middle": KEY.secret[5:29],
}


class TestSecrets:
    @pytest.mark.parametrize("spelling", SPELLINGS)
    @pytest.mark.parametrize("place", ["start", "across blocks"])
    def test_the_secret_in_any_spelling(self, tmp_path, spelling, place):
        before = b"" if place == "start" else os.urandom(2**20 - 9)
        (tmp_path / "notes.bin").write_bytes(before + SPELLINGS[spelling] + b"\0 after")
        with pytest.raises(PushRefusedError, match="notes.bin") as error:
            check_secrets(tmp_path, KEY)
        assert KEY.secret.hex()[:12] not in str(error.value)
        check_secrets(tmp_path, WatermarkKey.generate("Other"))  # the control: another key's secret is not there

    def test_in_a_file_name_and_in_safetensors_metadata(self, tmp_path):
        save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {"seed": KEY.secret.hex()})
        with pytest.raises(PushRefusedError):
            check_secrets(tmp_path, KEY)
        (tmp_path / "a.safetensors").rename(tmp_path / "b")
        (tmp_path / "b").write_bytes(b"")
        check_secrets(tmp_path, KEY)
        (tmp_path / "b").rename(tmp_path / KEY.secret.hex())
        with pytest.raises(PushRefusedError):
            check_secrets(tmp_path, KEY)

    def test_the_shipped_model_holds_nothing(self):
        check_secrets(ASSETS / "marked", DEMO)


class TestPrivateFiles:
    @pytest.mark.parametrize(
        ("content", "what"),
        [
            (b'{"in_site": "a", "secrets": {}}', "a leaf of a key"),
            (b"-----BEGIN PRIVATE KEY-----\nx", "a private key"),
            (b'{"format": "aiao-key", "secret": "00"}', "a watermark key"),
        ],
    )
    def test_are_refused_without_the_key_at_hand(self, tmp_path, content, what):
        (tmp_path / "notes.txt").write_bytes(content)
        with pytest.raises(PushRefusedError, match=what):
            check_secrets(tmp_path, None)

    def test_the_alignment_reference(self, tmp_path):
        tensors = {name: torch.zeros(2) for name in ("latents", "timesteps", "leaving.a", "entering.b")}
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(PushRefusedError, match="alignment reference"):
            check_secrets(tmp_path, None)
        save_file({"latents": torch.zeros(2)}, tmp_path / "x.safetensors")
        check_secrets(tmp_path, None)
