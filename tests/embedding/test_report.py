"""What embedding reports, and when it calls its own mark weak."""

from types import SimpleNamespace

import pytest
from _tiny import few_steps, learner

from aiao_diffusers import EmbedReport, WatermarkKey, embed


KEY = WatermarkKey(bytes(range(32)), "Demo")


class TestReport:
    @pytest.mark.slow
    def test_report_logs_every_term_and_plots(self, tmp_path):
        unet, data, scheduler = learner()
        config = few_steps(check_every=2, stop_bits=1.0)
        report = embed(unet, KEY, data, config, scheduler=scheduler)
        for row, corr in zip(report.history, (0.2 + 0.8 / 9, 1.0, 1.0), strict=True):
            terms = sum(getattr(config, name) * row[name] for name in ("resp", "pres", "eps", "dec", "proj"))
            assert row["loss"] == pytest.approx(terms + config.corr * corr * row["corr"], rel=1e-4)
        assert [step for step, row in enumerate(report.history, 1) if "bits" in row] == [2]
        assert report.to_dict()["trained"] == sum(p.numel() for p in unet.parameters())
        figure = report.plot()
        figure.savefig(tmp_path / "curves.png")
        assert len(figure.axes) == 2 and len(figure.axes[0].lines) == 7

    @pytest.mark.slow
    def test_a_mark_that_does_not_verify_is_said_to_be_weak(self):
        unet, data, scheduler = learner()
        with pytest.warns(UserWarning, match="too weak to be verified .not_verified, log10 p"):
            report = embed(unet, KEY, data, few_steps(), scheduler=scheduler)
        assert report.reading.verdict == report.to_dict()["verdict"] == "not_verified"


def report() -> EmbedReport:
    return EmbedReport(SimpleNamespace(commitment="00" * 32), [], 1.0, 0.0045)


def test_the_price_is_found_by_its_former_name_too():
    with pytest.warns(FutureWarning, match=r"EmbedReport\.fidelity is now price"):
        assert report().fidelity == report().price == 0.0045


def test_json_holds_the_price_by_both_names():
    document = report().to_dict()
    assert document["price"] == document["fidelity"] == 0.0045


def test_the_former_name_is_no_field():
    assert "fidelity" not in repr(report()) and "price=0.0045" in repr(report())
