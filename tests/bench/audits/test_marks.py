"""Detectors see what is there and no more; wrong masks and single in-sites are read as a verifier reads."""

import copy

import pytest
import torch
from _tiny import tiny_unet
from diffusers import DDIMScheduler

from aiao_diffusers import EmbedConfig, LatentData, WatermarkKey, embed
from aiao_diffusers.bench.audits import marks as embedding
from aiao_diffusers.mark.subpath import sub_path
from aiao_diffusers.verification.evidence import key_sites


KEY = WatermarkKey(bytes(range(32)), "Test")


def pictures(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pictures_of_one_kind_are_at_chance():
    found, low, high = embedding.detect_pictures(pictures(80, 0), pictures(80, 1), seed=0)
    assert low < 0.5 < high and low < found < high


def test_blurred_pictures_are_found():
    sharp, other = pictures(80, 0), pictures(80, 1)
    blurred = 0.5 * other + 0.5 * torch.nn.functional.avg_pool2d(other, 3, 1, 1)
    assert embedding.detect_pictures(sharp, blurred, seed=0)[1] > 0.5


def test_equal_weights_are_at_chance_and_pruned_ones_are_found():
    assert embedding.detect_weights(tiny_unet(0), tiny_unet(0), seed=0)[0] == 0.5
    pruned = tiny_unet(0)
    with torch.no_grad():
        for p in pruned.parameters():
            p[p.abs() < p.abs().median()] = 0
    assert embedding.detect_weights(tiny_unet(0), pruned, seed=0)[1] > 0.5


@pytest.fixture(scope="module")
def marked():
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(12, 4, 8, 8, generator=generator), torch.randn(12, 5, 12, generator=generator)
    data, base = LatentData(latents, {"encoder_hidden_states": text}), tiny_unet(0)
    unet = copy.deepcopy(base)
    fields = {"steps": 150, "lr": 5e-3, "batch_size": 4, "in_sites": 2, "out_sites": 3, "bank_size": 4}
    config = EmbedConfig(**fields, eps=0.1, dec=1.0, pres=0.5, corr=10.0, anchor=0.0, max_price=None, lineage=0)
    record = embed(unet, KEY, data, config, scheduler=DDIMScheduler(clip_sample=False, steps_offset=1)).record
    return base, unet, record


@pytest.mark.slow
def test_true_masks_call_up_the_patterns_and_wrong_ones_do_not(marked):
    base, unet, record = marked
    ins, outs = key_sites(unet, KEY, record)
    cases = [(KEY, sub_path(ins, outs)), *((KEY.child(str(i)), sub_path(ins, outs)) for i in range(20))]
    (bits, p), *wrong = embedding.bits_under(unet, KEY, record, cases, trials=4, seed=0)
    assert bits > 0.85 and p < -3
    assert sum(b for b, _ in wrong) / len(wrong) < bits - 0.2
    assert embedding.bits_under(base, KEY, record, cases[:1], trials=4, seed=0)[0][1] > -5


@pytest.mark.slow
def test_the_mark_in_one_table(marked):
    base, unet, record = marked
    read = embedding.mark(unet, base, KEY, record, wrong=10, seed=0)
    assert set(read["alone"]) == {str(site.order) for site in key_sites(unet, KEY, record)[0]}
    assert read["wrong"]["n"] == read["wrong_on_base"]["n"] == 10
    price = {"ratio": 0.01, "ratio_ci": 0.001, "samples": 8.0}
    inversion = {"cosine": 0.4, "others": [0.1, 0.2, 0.3], "p": 0.25}
    one = {"price": price, "mark": read, "weights": [0.5, 0.4, 0.6], "inversion": inversion}
    text = embedding.markdown({"key 0": one, "key 1": one})
    assert text.startswith("| what | key 0 | key 1 |") and "CMMD" not in text
    line = next(line for line in text.splitlines() if line.startswith("| true patterns under wrong masks |"))
    cells = line.split(" | ")
    assert len(cells) == 3 and cells[1] == cells[2].removesuffix(" |")
    assert "0.400; 0.200, 0.300" in text
