"""`aiao profile`: what it prints loads again."""

import json
import sys
from contextlib import contextmanager

import pytest
from _tiny import scaled, tiny_unet

from aiao_diffusers import LayerProfile
from aiao_diffusers.embedding import layer_profile
from aiao_diffusers.embedding.layer_profile import LayerChange
from aiao_diffusers.errors import MissingExtraError


CONV, LINEAR = "mid_block.resnets.0.conv1", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def by_name(found: LayerProfile) -> dict:
    return {layer.name: layer for layer in found.layers}


class TestProfile:
    def test_without_matplotlib_no_work_is_begun(self, tmp_path, monkeypatch):
        from aiao_diffusers.cli.profile import profile as command

        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(MissingExtraError, match=r"aiao_diffusers\[plots\]"):
            command("nowhere", ["nor here"], plot=tmp_path / "p.png")

    @pytest.mark.parametrize("quiet", [False, True])
    def test_it_shows_how_many_were_compared(self, capsys, monkeypatch, quiet):
        from aiao_diffusers.cli.profile import profile as command

        steps = []

        @contextmanager
        def progress(what, total, *, quiet):
            yield lambda done: steps.append((done, total, quiet))

        def compare(base, tuned, *, weight_name, callback):
            for done in range(len(tuned)):
                callback(done + 1, len(tuned))
            return LayerProfile(base, tuple(tuned), (LayerChange("conv_in", "conv_in", 1, 0.5, 0.0),))

        monkeypatch.setattr(sys.modules["aiao_diffusers.cli.profile"], "progress", progress)
        monkeypatch.setattr(layer_profile, "profile", compare)
        command("base", ["a", "b"], None, None, False, quiet)
        assert steps == [(1, 2, quiet), (2, 2, quiet)] and "Busy and lazy" in capsys.readouterr().out

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
