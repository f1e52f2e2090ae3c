"""CMMD against its definition and in the two cases whose value is known."""

import pytest
import torch

from aiao_diffusers.bench.audits.marks import permuted
from aiao_diffusers.bench.suite.quality import clip_score, cmmd, perceptual


def unit(count, shift=0.0, seed=0):
    rows = torch.randn(count, 16, generator=torch.Generator().manual_seed(seed))
    rows[:, 0] += shift
    return torch.nn.functional.normalize(rows, dim=1)


def test_cmmd_equals_its_definition():
    a, b, sigma = unit(5), unit(4, seed=1), 10.0

    def k(x, y):
        return torch.exp(-(x.double() - y.double()).square().sum() / (2 * sigma**2)).item()

    within_a = sum(k(a[i], a[j]) for i in range(5) for j in range(5) if i != j) / 20
    within_b = sum(k(b[i], b[j]) for i in range(4) for j in range(4) if i != j) / 12
    across = sum(k(x, y) for x in a for y in b) / 20
    assert cmmd(a, b) == pytest.approx(1000 * (within_a + within_b - 2 * across), abs=1e-9)
    assert cmmd(a, b) == pytest.approx(cmmd(b, a), abs=1e-9)


def test_cmmd_is_zero_in_the_mean_for_one_distribution_and_large_for_two():
    null = [cmmd(unit(40, seed=2 * s), unit(40, seed=2 * s + 1)) for s in range(40)]
    values = torch.tensor(null)
    assert abs(values.mean().item()) < 3 * values.std().item() / 40**0.5
    assert cmmd(unit(40), unit(40, shift=3.0, seed=1)) > max(null)


def of_prompts(prompts, seed, shift=0.0):
    """Pictures near their prompts, one each."""
    noise = 0.3 * torch.randn(prompts.shape, generator=torch.Generator().manual_seed(seed))
    noise[:, 0] += shift
    return torch.nn.functional.normalize(prompts + noise, dim=1)


def test_pictures_of_the_same_prompts_are_no_nearer_than_one_distribution():
    pairs = [(of_prompts(unit(20, seed=s), 2 * s), of_prompts(unit(20, seed=s), 2 * s + 1)) for s in range(40)]
    values = torch.tensor([cmmd(a, b, paired=True) for a, b in pairs])
    assert abs(values.mean().item()) < 3 * values.std().item() / 40**0.5
    assert torch.tensor([cmmd(a, b) for a, b in pairs]).mean() < -0.2  # what the pairs did


@pytest.mark.slow
def test_the_permutation_p_of_paired_pictures():
    prompts = unit(60)
    null = torch.tensor([permuted(of_prompts(prompts, 2 * s), of_prompts(prompts, 2 * s + 1), s) for s in range(20)])
    assert 0.2 < null.mean().item() < 0.8 and null.min().item() < 0.5 < null.max().item()
    assert permuted(of_prompts(prompts, 0), of_prompts(prompts, 1, shift=0.5), 0) < 0.01


def test_clip_score():
    a = unit(6)
    assert clip_score({"image": a, "text": a})[0] == pytest.approx(1.0, abs=1e-6)
    assert clip_score({"image": a, "text": -a})[0] == pytest.approx(-1.0, abs=1e-6)


def test_perceptual_is_the_mean_squared_distance_of_unit_features():
    a, b = (torch.stack([unit(6, seed=s).view(2, 3, 16) for s in (k, k + 9)]) for k in (0, 1))
    by_hand = [(a[x, n, t] - b[x, n, t]).square().sum().item() for x in range(2) for n in range(2) for t in range(3)]
    assert perceptual({"features": a}, {"features": b}) == pytest.approx(sum(by_hand) / 12, abs=1e-6)
    assert perceptual({"features": a}, {"features": a}) == 0.0
    assert perceptual({"features": a}, {"features": -a}) == pytest.approx(4.0, abs=1e-5)
