"""What embedding reports, and when it calls its own mark weak."""

import pytest
from _tiny import LEARN, learner

from aiao_diffusers import EmbedConfig, WatermarkKey, embed


KEY = WatermarkKey(bytes(range(32)), "Demo")


def short(**changes):
    return EmbedConfig(**(LEARN | {"steps": 3} | changes))


class TestReport:
    def test_report_logs_every_term_and_plots(self, tmp_path):
        unet, data, scheduler = learner()
        config = short(check_every=2, stop_bits=1.0)
        report = embed(unet, KEY, data, config, scheduler=scheduler)
        for row, corr in zip(report.history, (0.2 + 0.8 / 9, 1.0, 1.0), strict=True):
            terms = sum(getattr(config, name) * row[name] for name in ("resp", "pres", "eps", "dec", "proj"))
            assert row["loss"] == pytest.approx(terms + config.corr * corr * row["corr"], rel=1e-4)
        assert [step for step, row in enumerate(report.history, 1) if "bits" in row] == [2]
        assert report.to_dict()["trained"] == sum(p.numel() for p in unet.parameters())
        figure = report.plot()
        figure.savefig(tmp_path / "curves.png")
        assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 7

    def test_a_mark_that_does_not_verify_is_said_to_be_weak(self):
        unet, data, scheduler = learner()
        with pytest.warns(UserWarning, match="too weak to be verified .not_verified, log10 p"):
            report = embed(unet, KEY, data, short(), scheduler=scheduler)
        assert report.reading.verdict == report.to_dict()["verdict"] == "not_verified"
