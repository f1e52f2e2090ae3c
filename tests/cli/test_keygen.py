"""`aiao keygen`: a key that is never overwritten, and the exit codes."""

import pytest
from _shipped import ASSETS

from aiao_diffusers import WatermarkKey


@pytest.mark.slow
def test_keygen_and_exit_codes(aiao, tmp_path):
    key = tmp_path / "a.key"
    made = aiao("keygen", "--owner", "Acme", "-o", key, "--json")
    assert made.code == 0 and made.json["commitment"] == WatermarkKey.load(key).commitment
    again = aiao("keygen", "--owner", "Acme", "-o", key)
    assert again.code == 1 and "KeyFileError" in again.err
    wrong = aiao("verify", ASSETS / "marked", "--key", key, "--json")
    assert wrong.code == 3 and wrong.json["verdict"] == "not_verified"
    assert aiao("verify").code == 2
