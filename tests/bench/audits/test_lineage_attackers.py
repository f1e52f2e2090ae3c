"""Attackers change what they say they change: exact ones keep the output, projections leave nothing along their directions."""

import copy
from dataclasses import replace

import pytest
import torch
from _carried import KEY, LINEAR, SCHEDULER, carry, latents, text_unet
from _kind import FULL
from _lineage import CELL, example, shorten

from aiao_diffusers.bench.audits import lineage_attackers as attackers
from aiao_diffusers.bench.audits.lineage_attackers import (
    Arena,
    bases_of,
    forget_biases,
    keep_down,
    layer_means,
    measure_attackers,
    norm_biases,
    project_out,
    recentre,
    reparametrise,
    wear,
)
from aiao_diffusers.bench.audits.lineage_models import Models
from aiao_diffusers.bench.audits.lineage_training import train_adapter
from aiao_diffusers.denoiser.price import measure_price
from aiao_diffusers.lineage.site import direction
from aiao_diffusers.lineage.sites import plan_carrier
from aiao_diffusers.stats.hits import hits


@pytest.fixture
def marked():
    unet = text_unet()
    carry(unet)
    return unet


def price(before, after):
    return measure_price(before, after, latents(), SCHEDULER, samples=4)["ratio"]


def seen(unet):
    """Share of channels in which the biases of norms before feed-forwards agree with the key."""
    sites = [site for site in plan_carrier(unet).sites if site.kind == "feed_forward"]
    found = [
        hits(unet.get_submodule(site.name).bias.detach().double().numpy(), direction(KEY, site)) for site in sites
    ]
    return sum(found) / sum(site.width for site in sites)


def test_recentring_is_exact_and_takes_the_directions_out_of_the_norms(marked):
    changed = copy.deepcopy(marked)
    assert seen(marked) > 0.9
    recentre(changed)
    assert price(marked, changed) < 1e-9 and seen(changed) < 0.7
    means = layer_means(changed, latents(), SCHEDULER, "all linear")
    before = layer_means(marked, latents(), SCHEDULER, "all linear")
    for name in means:
        if name.endswith("attn1.to_q"):
            assert float((means[name] - before[name]).norm()) > 0.1 * float(before[name].norm())


def test_forgetting_biases_is_not_exact(marked):
    changed = copy.deepcopy(marked)
    forget_biases(changed)
    assert price(marked, changed) > 1e-6
    assert all(float(bias.abs().max()) == 0 for name, bias in norm_biases(changed).items() if "to_q" in name)


def test_another_carrier_is_exact_and_drowns_the_first_in_the_split(marked):
    changed = copy.deepcopy(marked)
    reparametrise(changed, latents(), SCHEDULER, 1.0)
    assert price(marked, changed) < 1e-6 and seen(changed) < 0.7 < seen(marked)


def test_means_are_those_of_the_inputs(marked):
    means = layer_means(marked, latents(), SCHEDULER, "all linear")
    assert all(name.endswith(LINEAR) for name in means)
    found = []
    name = next(name for name in means if name.endswith("attn1.to_q"))
    hook = marked.get_submodule(name).register_forward_pre_hook(lambda _, args: found.append(args[0].mean((0, 1))))
    attackers.predictions(marked, latents(), SCHEDULER, samples=attackers.SAMPLES, seed=9)
    hook.remove()
    torch.testing.assert_close(torch.stack(found).sum(0), means[name], atol=1e-4, rtol=1e-3)
    assert not any(module._forward_pre_hooks for module in marked.modules())


def test_nothing_is_left_along_a_direction_that_was_projected_out():
    generator = torch.Generator().manual_seed(0)
    down, along = torch.randn(3, 6, generator=generator), torch.randn(6, generator=generator)
    state = {"unet.a.lora_A.weight": down, "unet.a.lora_B.weight": down.T, "unet.b.lora_A.weight": down}
    changed = project_out(state, bases_of({"a": [along, torch.ones(6)]}))
    assert float((changed["unet.a.lora_A.weight"] @ along).abs().max()) < 1e-5
    assert float(changed["unet.a.lora_A.weight"].sum(1).abs().max()) < 1e-5
    assert changed["unet.a.lora_B.weight"] is state["unet.a.lora_B.weight"]
    assert changed["unet.b.lora_A.weight"] is down


def test_training_at_right_angles_stays_there(marked):
    bases = bases_of({name: [mean] for name, mean in layer_means(marked, latents(), SCHEDULER, "attention").items()})
    cell = replace(CELL, steps=2, targets="attention")
    made = train_adapter(marked, cell, latents(), SCHEDULER, after_step=attackers._keep_projected(bases)).state
    for name, down in made.items():
        if ".lora_A." in name:
            q = bases[name.removeprefix("unet.").removesuffix(".lora_A.weight")]
            assert float((down @ q).abs().max()) < 1e-5 * float(down.norm())


def test_down_factors_that_are_kept_do_not_move(marked):
    cell = replace(CELL, steps=3, decay=0.0)
    kept, plain, begun = (
        train_adapter(copy.deepcopy(marked), replace(cell, steps=steps), latents(), SCHEDULER, **options).state
        for steps, options in ((3, {"after_step": keep_down()}), (3, {}), (1, {}))
    )
    for name, value in kept.items():
        if ".lora_A." in name:  # up factors begin at 0: the first step moves them alone
            assert torch.equal(value, begun[name]) and not torch.equal(value, plain[name])


def test_an_adapter_is_put_on_as_it_was_trained(marked):
    trained, cell = copy.deepcopy(marked), replace(CELL, steps=3, alpha=8.0, lr=0.05)
    state = train_adapter(trained, cell, latents(), SCHEDULER).state
    plain = copy.deepcopy(marked)
    wear(plain, state, cell)
    assert price(trained.eval(), plain.eval()) < 1e-9 < price(marked, plain)


if FULL:  # half a minute

    def test_every_attacker_has_a_row_and_who_attacks_nothing_is_read(tmp_path, monkeypatch):
        shorten(monkeypatch)
        monkeypatch.setattr(attackers, "SAMPLES", 4)
        told = []
        models = Models(example(tmp_path / "example"), tmp_path / "run")
        rows = measure_attackers(Arena(models, 0, CELL, tmp_path), told.append)
        found = {row["attacker"]: row for row in rows}
        assert len(found) == len(rows) == len(told) == 13
        assert found["none"]["log10_p"] < -6 and found["none"]["price"] == 0
        assert found["norms re-centred before training"]["log10_p"] > -3
        assert found["norms re-centred before training"]["price"] < 1e-9
        assert found["distilled into an adapter of a clean base"]["log10_p"] > -3
        assert all(row["wrong_key"] > -4 for row in rows)
