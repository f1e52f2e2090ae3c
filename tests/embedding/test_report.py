"""The report of an embedding: the price under its name and its former one."""

from types import SimpleNamespace

import pytest

from aiao_diffusers import EmbedReport


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
