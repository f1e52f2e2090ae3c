"""Keys: fixed vectors, files, errors."""

import hashlib
import json
import os

import numpy as np
import pytest

from aiao_diffusers import WatermarkKey
from aiao_diffusers.errors import KeyFileError


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestDerivation:
    def test_commitment_by_hand(self):
        parts = (b"aiao-1", b"commitment", b"Demo", bytes(range(32)))
        message = b"".join(len(p).to_bytes(8, "big") + p for p in parts)
        assert KEY.commitment == hashlib.sha256(message).hexdigest()

    def test_fixed_vector(self):
        # From the secret 00 01 .. 1f, owner Demo, scheme aiao-1; a change here breaks every published mark.
        assert KEY.commitment == "a2f283e101000d4ee3b2504c3b2f55792d61eccf2ac685cea8ca4aa1b265a03b"

    @pytest.mark.parametrize("width", [2, 7, 64, 161])
    def test_masks_are_balanced(self, width):
        mask = KEY.trigger_mask("site", width)
        assert set(np.unique(mask)) == {-1, 1} and int((mask > 0).sum()) == width // 2

    def test_labels_and_keys_are_independent(self):
        a, b = KEY.trigger_mask("s", 256), KEY.response_pattern("s", 256)
        assert not np.array_equal(a, b) and not np.array_equal(a, KEY.child("x").trigger_mask("s", 256))
        assert np.array_equal(a, WatermarkKey(bytes(range(32)), "Other").trigger_mask("s", 256))

    def test_shuffle_is_uniform(self):
        counts = {}
        for number in range(1200):
            order = tuple(KEY.shuffled(f"t/{number}", [0, 1, 2]))
            counts[order] = counts.get(order, 0) + 1
        assert len(counts) == 6 and sum((c - 200) ** 2 / 200 for c in counts.values()) < 20.5  # chi2(5), p = .001


class TestFile:
    def test_round_trip_private_and_silent(self, tmp_path):
        path = KEY.save(tmp_path / "a.key")
        assert path.stat().st_mode & 0o777 == 0o600
        assert WatermarkKey.load(path) == KEY
        assert KEY.secret.hex() not in repr(KEY)

    def test_never_overwritten(self, tmp_path):
        KEY.save(tmp_path / "a.key")
        with pytest.raises(KeyFileError, match="never overwritten"):
            KEY.child("x").save(tmp_path / "a.key")
        assert WatermarkKey.load(tmp_path / "a.key") == KEY and len(list(tmp_path.iterdir())) == 1

    def test_on_a_drive_without_links(self, tmp_path, monkeypatch):
        def refuse(*_):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)
        path = KEY.save(tmp_path / "a.key")
        assert path.stat().st_mode & 0o777 == 0o600 and WatermarkKey.load(path) == KEY
        with pytest.raises(KeyFileError, match="never overwritten"):
            KEY.child("x").save(path)
        assert WatermarkKey.load(path) == KEY
        monkeypatch.setattr(os, "replace", refuse)
        with pytest.raises(PermissionError):
            KEY.save(tmp_path / "b.key")
        assert [p.name for p in tmp_path.iterdir()] == ["a.key"]

    def test_readable_by_others_warns(self, tmp_path):
        KEY.save(tmp_path / "a.key").chmod(0o644)
        with pytest.warns(UserWarning, match="chmod 600"):
            WatermarkKey.load(tmp_path / "a.key")

    @pytest.mark.parametrize("change", [{"secret": "00"}, {"scheme": "aiao-9"}, {"owner": "Thief"}, {"format": "x"}])
    def test_altered_file_is_refused(self, tmp_path, change):
        path = KEY.save(tmp_path / "a.key")
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
        with pytest.raises(KeyFileError):
            WatermarkKey.load(path)

    def test_missing_and_truncated(self, tmp_path):
        with pytest.raises(KeyFileError, match="no key file"):
            WatermarkKey.load(tmp_path / "none.key")
        path = KEY.save(tmp_path / "a.key")
        path.write_text(path.read_text()[:40])
        with pytest.raises(KeyFileError, match="not a whole key file"):
            WatermarkKey.load(path)


class TestPairs:
    def test_a_mask_hangs_on_both_sites(self):
        masks = [KEY.trigger_mask(a, 64, b) for a, b in (("a", None), ("a", "x"), ("a", "y"), ("b", "x"))]
        assert all(int(mask.sum()) == 0 for mask in masks)
        assert len({mask.tobytes() for mask in masks}) == 4

    def test_fixed_vector(self):
        # From the secret 00 01 .. 1f; a change here breaks every published mark of this kind.
        digest = hashlib.sha256(KEY.trigger_mask("in", 64, "out").tobytes()).hexdigest()
        assert digest == "7065f6edd643f2b9c1918bfaf693d49b58ed065fafcdb4c4e87c4e973800cac8"
