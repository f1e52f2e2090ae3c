"""Pairs of a file and a fresh key are read as the library reads them, their p is uniform, and a planted direction is seen."""

import itertools
from fractions import Fraction

import pytest
import torch
from _carried import KEY, planted, text_unet
from _lineage import quiet
from safetensors.torch import save_file

from aiao_diffusers.bench.audits.lineage_null import TAILS, FileResponses, PairTail, fresh_keys, measure_pairs
from aiao_diffusers.lineage.reading import LOOKS, read_lineage
from aiao_diffusers.stats.hits import SiteHits


@pytest.fixture(scope="module")
def unet():
    return text_unet()


@pytest.fixture(scope="module")
def files(unet, tmp_path_factory):
    found = {}
    for name, strength in (("clean", 0.0), ("own", 1.0)):
        found[name] = tmp_path_factory.mktemp("files") / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in planted(unet, strength).items()}, found[name])
    return found


@pytest.mark.parametrize("name", ["clean", "own"])
def test_is_what_the_library_reads(files, unet, name):
    held = FileResponses.read(files[name], unet)
    for key in (KEY, KEY.child("wrong")):
        looks = read_lineage(files[name], key, unet).looks
        found = [PairTail(n)(triples, 0.5)[0] for n, triples in enumerate(held.compare(key))]
        assert found == pytest.approx([look["log10_p"] for look in looks])


def test_steps_are_filled_in_between_neighbours():
    # One site of width 4, 2 of them +1: hits 0, 2, 4 with chances 1/6, 4/6, 1/6; folded, a surplus of 0 or 2.
    laws = {0: Fraction(1, 6), 2: Fraction(4, 6), 4: Fraction(1, 6)}
    for hits in laws:
        p, low = PairTail(1)([SiteHits(4, 2, hits)], 0.0)
        at_least = sum(chance for h, chance in laws.items() if abs(h - 2) >= abs(hits - 2))
        beyond = sum(chance for h, chance in laws.items() if abs(h - 2) > abs(hits - 2))
        assert 10**p == pytest.approx(float(at_least))
        if abs(hits - 2) < 2:  # of the largest there is no next one
            assert low == pytest.approx(float(beyond))


def test_tails_are_computed_once(monkeypatch):
    tail, asked = PairTail(0), []
    monkeypatch.setattr(
        "aiao_diffusers.bench.audits.lineage_null.TAILS", (lambda t: asked.append(t) or TAILS[0](t), TAILS[1])
    )
    for _ in range(3):
        tail([(8, 4, 3), (6, 3, 1)], 0.5)
    tail([(6, 3, 2), (8, 4, 2)], 0.5)
    assert len(asked) == 2  # of this sum and of the next


@pytest.mark.slow
def test_controls_are_uniform_and_a_planted_direction_is_not(files, unet, monkeypatch):
    options = {"seed": 1, "alpha": 1e-6, "progress": quiet}
    told = measure_pairs("clean", [(files["clean"], unet)] * 2, 200, **options)
    assert (told["files"], told["pairs"], told["verdicts"]) == (2, 200, 0)
    assert all(told["looks"][label]["ks_p"] > 1e-3 for label in LOOKS) and told["adjusted"]["share_0.1"] < 0.2
    assert told["expected_smallest"][0] < told["looks"]["ones"]["smallest"] + 2
    monkeypatch.setattr(
        "aiao_diffusers.bench.audits.lineage_null.fresh_keys", lambda *given: list(itertools.repeat(KEY, given[1]))
    )
    own = measure_pairs("own", [(files["own"], unet)], 20, **options)
    assert own["verdicts"] == 20 and own["looks"]["ones"]["ks_p"] < 1e-6


def test_files_that_touch_no_site_are_no_pairs(unet, tmp_path):
    where = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    save_file(
        {f"{where}.lora_A.weight": torch.ones(2, 64), f"{where}.lora_B.weight": torch.ones(64, 2)},
        tmp_path / "k.safetensors",
    )
    assert FileResponses.read(tmp_path / "k.safetensors", unet) is None
    told = measure_pairs("none", [(tmp_path / "k.safetensors", unet)], 5, seed=0, alpha=1e-6, progress=quiet)
    assert told == {"group": "none", "files": 0, "pairs": 0}


def test_fresh_keys_are_the_same_for_anyone():
    first, again, other = (fresh_keys(name, 3, 0) for name in ("a", "a", "b"))
    assert first == again and not {key.secret for key in first} & {key.secret for key in other}
