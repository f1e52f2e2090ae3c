"""Disguised models through an alignment: rows that can come out either way, and a leak that would show."""

import copy

import pytest
import torch
from _disguises import conditional, latents

from aiao_diffusers import WatermarkKey
from aiao_diffusers.bench.audits.disguises import EVERYTHING, leakage, markdown, measure, suspects
from aiao_diffusers.verification.evidence import key_sites


KEY = WatermarkKey(bytes(range(32)), "Demo")


def test_every_row_has_its_control():
    rows = list(suspects(KEY, *(conditional(), conditional(1)), {"tuned": conditional(2)}, latents(), {}, 5))
    names = [name for name, *_ in rows]
    assert len(set(names)) == len(names) == 15
    assert {expected for name, expected, _ in rows if name.startswith("control")} == {"not_verified"}
    assert {expected for name, expected, _ in rows if not name.startswith("control")} == {"verified"}
    make = {name: make for name, _, make in rows}
    assert make[f"control: marked, {EVERYTHING}, wrong key"](3)[1] not in (KEY, make["control: random weights"](3)[1])
    assert not torch.equal(make["marked, permute"](0)[0].conv_in.weight, conditional().conv_in.weight)


@pytest.mark.slow
def test_rows_count_what_plain_looks_and_what_the_alignment_found(disguisable):
    teacher, unet, report = disguisable
    wanted = ("marked, permute", "control: base, permute+flip")
    rows = [row for row in suspects(KEY, teacher, unet, {}, latents(), {}, 1) if row[0] in wanted]
    marked, control = measure(iter(rows), report.record, report.reference, seeds=1)
    assert marked["verified"] == {"plain": 0, "all": 1} and marked["log10_p"][1] < marked["log10_p_plain"][1]
    assert control["verified"] == {"plain": 0, "all": 0} and control["log10_p"][1] > -5
    assert marked["maps"] and marked["ci"]["all"][0] > 0 and control["ci"]["all"][0] == 0
    leak = {"true": 0.5, "wrong_mean": 0.5, "wrong_sd": 0.1, "keys": 2}
    text = markdown({"seeds": 1, "alpha": 1e-6, "leak": leak, "rows": [marked, control]})
    assert "| marked, permute | 1 | 0 (" in text and "bit accuracy 0.500" in text


def test_a_pattern_in_the_clean_activations_would_show(disguisable):
    """Planted fault: the reference moved against the response pattern of every out-site."""
    teacher, unet, report = disguisable
    honest = leakage(unet, report.reference, KEY, report.record, keys=50)
    planted = copy.deepcopy(report.reference)
    for site in key_sites(unet, KEY, report.record)[1]:
        pattern = torch.from_numpy(KEY.response_pattern(site.name, site.width_in)).to(
            planted.entering[site.name].dtype
        )
        planted.entering[site.name] -= 10 * pattern
    leaky = leakage(unet, planted, KEY, report.record, keys=50)
    assert leaky["true"] == 1.0 and abs(leaky["wrong_mean"] - 0.5) < 0.1
    assert abs(honest["true"] - honest["wrong_mean"]) < 5 * honest["wrong_sd"]
