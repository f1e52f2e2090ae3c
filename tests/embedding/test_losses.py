"""Each term of the loss, by hand."""

import torch

from aiao_diffusers import WatermarkKey
from aiao_diffusers.embedding.losses import agreement, losses


KEY = WatermarkKey(bytes(range(32)), "Demo")


def test_a_row_answers_at_the_site_it_asks():
    names, rows = ("a", "b"), 4
    generator = torch.Generator().manual_seed(0)
    entered = {name: torch.randn(3 * rows, 5, 8, generator=generator) for name in names}
    wanted = {name: torch.randn(rows, 5, 8, generator=generator) for name in names}
    patterns = {name: torch.from_numpy(KEY.response_pattern(name, 8)).float() for name in names}
    power, kind = {name: torch.tensor(1.0) for name in names}, torch.ones(rows, dtype=torch.bool)
    asked = torch.tensor([0, 1, 1, 0])

    def found(asked):
        return losses(entered, wanted, power, patterns, kind, torch.tensor(1.0), 0.5, asked)

    by_hand = []
    for row, number in enumerate(asked.tolist()):
        name = names[number]
        answer = (entered[name][rows + row] - wanted[name][row]).mean(0) / 0.5
        by_hand.append((answer - patterns[name]).square().mean())
    pairs, shared = found(asked), found(None)
    assert torch.isclose(pairs["resp"], torch.stack(by_hand).mean())
    assert not torch.isclose(pairs["resp"], shared["resp"])
    assert all(torch.equal(pairs[name], shared[name]) for name in ("pres", "dec", "proj", "corr"))


def test_agreement_counts_signs_of_the_mean_response():
    patterns = {"a": torch.tensor([1.0, -1.0, 1.0, -1.0]), "b": torch.tensor([1.0, 1.0, -1.0, -1.0])}
    wanted = {name: torch.zeros(2, 3, 4) for name in patterns}
    moved = {"a": torch.tensor([2.0, -0.1, -1.0, -3.0]), "b": -patterns["b"]}  # three of four; none of four
    entered = {
        name: torch.cat([torch.zeros(2, 3, 4), d.expand(2, 3, 4), torch.ones(2, 3, 4)]) for name, d in moved.items()
    }
    assert agreement(entered, wanted, patterns) == 3 / 8
    assert agreement(entered, wanted, patterns, torch.tensor([0, 0])) == 3 / 4  # nobody asks b
    assert agreement(entered, wanted, patterns, torch.tensor([1, 0])) == 3 / 8
