"""`aiao profile`: what it prints loads again."""

import json
import sys

import pytest
from _tiny import tiny_unet

from aiao_diffusers import LayerProfile
from aiao_diffusers.errors import MissingExtraError


CONV, LINEAR = "mid_block.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def scaled(layer: str, factor: float, seed: int = 0):
    """A copy of the miniature with one layer's parameters multiplied: its relative change is `factor - 1`."""
    unet = tiny_unet(seed)
    for p in unet.get_submodule(layer).parameters():
        p.data *= factor
    return unet


def by_name(found: LayerProfile) -> dict:
    return {layer.name: layer for layer in found.layers}


class TestProfile:
    def test_without_matplotlib_no_work_is_begun(self, tmp_path, monkeypatch):
        from aiao_diffusers.cli.profile import profile as command

        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(MissingExtraError, match=r"aiao_diffusers\[plots\]"):
            command("nowhere", ["nor here"], plot=tmp_path / "p.png")

    @pytest.mark.slow
    def test_what_the_command_prints_loads(self, tmp_path, capsys):
        from aiao_diffusers.cli.profile import profile as command

        tiny_unet().save_pretrained(tmp_path / "base")
        scaled(CONV, 1.5).save_pretrained(tmp_path / "tuned")
        command(str(tmp_path / "base"), [str(tmp_path / "tuned")], None, tmp_path / "p.png", True)
        printed = capsys.readouterr().out
        (tmp_path / "p.json").write_text(printed)
        assert json.loads(printed)["busiest_tenth"] == 1.0 and (tmp_path / "p.png").exists()
        assert by_name(LayerProfile.load(tmp_path / "p.json"))[CONV].change == pytest.approx(0.5, rel=1e-5)
