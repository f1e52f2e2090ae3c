"""A denoiser's weights alone say whether it descends from the model that carries the key."""

import copy
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from _carried import KEY, SCHEDULER, carry, latents, text_unet
from _transformers import build, forwards
from peft import LoraConfig
from torch import nn

from aiao_diffusers.errors import ConfigError, WrongBaseError
from aiao_diffusers.lineage.carrier import carry as carry_on
from aiao_diffusers.lineage.reading import CLAIMS
from aiao_diffusers.lineage.sites import plan_carrier
from aiao_diffusers.lineage.weights import constant_of, read_lineage_in_weights


def trained() -> nn.Module:
    """Norms and biases as training leaves them."""
    unet = text_unet()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in unet.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return unet


@pytest.fixture(scope="module")
def twin() -> nn.Module:
    return trained()


@pytest.fixture(scope="module")
def marked(twin) -> nn.Module:
    unet = copy.deepcopy(twin)
    carry(unet)
    return unet


def finetune(unet: nn.Module, steps: int, lr: float) -> nn.Module:
    unet, data = copy.deepcopy(unet), latents()
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(unet.parameters(), lr=lr)
    for _ in range(steps):
        batch = data.take(torch.randint(len(data), (2,)))
        noise, t = torch.randn_like(batch.latents), torch.randint(1000, (2,))
        noised = SCHEDULER.add_noise(batch.latents, noise, t)
        F.mse_loss(unet(noised, t, **batch.keywords()).sample, noise).backward()
        optimiser.step()
        optimiser.zero_grad()
    return unet


def merge(a: nn.Module, b: nn.Module) -> nn.Module:
    mixed, other = copy.deepcopy(a), b.state_dict()
    mixed.load_state_dict({name: (value + other[name]) / 2 for name, value in a.state_dict().items()})
    return mixed


@pytest.mark.parametrize("with_twin", [False, True])
def test_the_marked_model_and_what_is_made_of_it_verify_and_controls_do_not(marked, twin, with_twin):
    other = twin if with_twin else None
    changed = {
        "as it is": marked,
        "rounded": copy.deepcopy(marked).half(),
        "merged": merge(marked, twin),
        "fine-tuned": finetune(marked, 3, 1e-3),
    }
    for name, model in changed.items():
        found = read_lineage_in_weights(model, KEY, clean_twin=other)
        assert found.verdict == "verified" and found.log10_p < -60, name
        assert found.claim == CLAIMS["weights"] and found.kind == "weights" and found.share == 1.0
        assert found.log10_p >= found.log10_p_floor and len(found.sites) == 24
        assert bool(found.warnings) is with_twin
        wrong = read_lineage_in_weights(model, KEY.child("wrong"), clean_twin=other)
        assert wrong.verdict == "not_verified" and wrong.log10_p > -3 and wrong.claim == ""
    if not with_twin:
        clean = read_lineage_in_weights(twin, KEY)
        assert clean.verdict == "not_verified" and clean.log10_p > -3
        assert "do not show that it descends" in clean.in_words
    assert json.loads(json.dumps(found.to_dict()))["looks"][0]["label"] == "weights"


def test_a_fine_tune_of_the_clean_twin_reads_nothing_against_it(twin):
    found = read_lineage_in_weights(finetune(twin, 3, 1e-3), KEY, clean_twin=twin)
    assert found.verdict == "not_verified" and found.log10_p > -3


@pytest.mark.parametrize("kind", ["SD3.5", "CogVideoX", "Wan"])
def test_transformers_are_read_by_their_modulation(kind):
    clean = build(kind)
    model = copy.deepcopy(clean)
    carry_on(model, KEY, forwards(model, kind))
    own = read_lineage_in_weights(model, KEY, clean_twin=clean)
    assert own.verdict == "verified" and own.share == 1.0
    for control in (
        read_lineage_in_weights(model, KEY.child("w"), clean_twin=clean),
        read_lineage_in_weights(clean, KEY),
    ):
        assert control.verdict == "not_verified" and control.log10_p > -3


def test_each_constant_is_what_the_weights_shift_the_activation_by(marked, twin):
    values, others = dict(marked.named_parameters()), dict(twin.named_parameters())
    sites = plan_carrier(marked).sites
    for at, site in enumerate(sites):
        norm = sites[at - 1].shifted[0].module
        d = constant_of(values, site, norm) - constant_of(others, site, norm, planes=values)
        from_key = np.corrcoef(d, KEY.balanced(f"lineage/{site.name}", site.width))[0, 1]
        assert from_key > 0.99


@pytest.mark.slow
def test_wrong_keys_are_verified_no_more_often_than_p_says(marked):
    ps = np.array([10 ** read_lineage_in_weights(marked, KEY.child(str(n))).log10_p for n in range(60)])
    assert (ps <= 0.1).mean() <= 0.2 and ps.min() > 1e-4


def test_an_adapter_in_the_model_leaves_the_base_readable(marked):
    unet = copy.deepcopy(marked)
    before = read_lineage_in_weights(unet, KEY).log10_p
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v", "proj_in", "ff.net.2"]))
    found = read_lineage_in_weights(unet, KEY)
    assert found.log10_p == pytest.approx(before) and "['default'] took no part" in " ".join(found.warnings)


def test_what_cannot_answer_is_not_testable_or_refused(marked, twin):
    assert read_lineage_in_weights(nn.Linear(2, 2), KEY).verdict == "not_testable"
    found = read_lineage_in_weights(twin, KEY, clean_twin=twin)
    assert found.verdict == "not_testable" and "tells channels apart" in found.reason
    broken = copy.deepcopy(marked)
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(torch.nan)
    assert read_lineage_in_weights(broken, KEY).verdict == "not_testable"
    with pytest.raises(WrongBaseError, match="another model"):
        read_lineage_in_weights(marked, KEY, clean_twin=text_unet(block_out_channels=(32, 32)))
    with pytest.raises(ConfigError, match="alpha"):
        read_lineage_in_weights(marked, KEY, alpha=0.0)
    with pytest.raises(ConfigError, match="factor"):
        read_lineage_in_weights(marked, KEY, factor=0)


def test_tests_that_could_have_been_shown_are_paid_for(marked):
    one, ten = (read_lineage_in_weights(marked, KEY, factor=count) for count in (1, 10))
    assert ten.log10_p == pytest.approx(one.log10_p + 1)
