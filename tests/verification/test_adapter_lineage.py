"""An adapter's file is read alone too, and the two claims are kept apart."""

from html import unescape

import pytest
from _carried import KEY, planted
from _tiny import tiny_unet
from safetensors.torch import save_file

from aiao_diffusers import verify


class TestLineage:
    def read(self, tmp_path, record, strength, **options):
        save_file(planted(tiny_unet(), strength), tmp_path / "lora.safetensors")
        return verify(tmp_path / "lora.safetensors", KEY, tiny_unet(), record, trials=1, amplitudes=(1.0,), **options)

    @pytest.mark.slow
    def test_a_file_that_inherited_the_directions_verifies_beside_a_base_without_a_mark(self, record, tmp_path):
        report = self.read(tmp_path, record, 3.0)
        assert report.verdict == "not_verified" and report.proves == "nothing"
        assert report.lineage["verdict"] == "verified" and report.lineage["log10_p"] < -6
        assert report.lineage["claim"] in report.to_markdown()
        assert report.lineage["claim"] in unescape(report.to_html())
        assert report.to_dict()["lineage"]["share"] == 1.0

    @pytest.mark.slow
    def test_an_unmarked_file_and_a_wrong_key_do_not(self, record, tmp_path):
        report = self.read(tmp_path, record, 0.0)
        assert report.lineage["verdict"] == "not_verified" and report.lineage["claim"] == ""
        assert "does not show on which model" in report.to_markdown()
        save_file(planted(tiny_unet(), 3.0, KEY.child("wrong")), tmp_path / "wrong.safetensors")
        wrong = verify(tmp_path / "wrong.safetensors", KEY, tiny_unet(), record, trials=1, amplitudes=(1.0,))
        assert wrong.lineage["verdict"] == "not_verified"

    @pytest.mark.slow
    def test_commitments_are_paid_for(self, record, tmp_path):
        one, ten = (self.read(tmp_path, record, 3.0, commitments=count).lineage["log10_p"] for count in (1, 10))
        assert ten == pytest.approx(one + 1)

    def test_a_model_has_none(self, record):
        report = verify(tiny_unet(), KEY, record=record, trials=1, amplitudes=(1.0,))
        assert report.lineage is None and "lineage" not in report.to_markdown()
