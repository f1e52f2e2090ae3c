"""Transformers: the shift of an adaptive norm carries the key, no output changes, and the rows name every layer that takes it."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from _carried import KEY
from _kind import sample
from _transformers import TINY, build, forwards
from accelerate import init_empty_weights

from aiao_diffusers.errors import SiteError
from aiao_diffusers.lineage import modulated
from aiao_diffusers.lineage.carrier import carry
from aiao_diffusers.lineage.modulated import Row
from aiao_diffusers.lineage.site import direction
from aiao_diffusers.lineage.sites import plan_carrier


ALWAYS = ["SD3.5", "FLUX.1"]


@pytest.mark.parametrize("kind", ALWAYS + sample([kind for kind in TINY if kind not in ALWAYS], 5))
@pytest.mark.parametrize(("dtype", "strength", "limit"), [(torch.float32, 0.25, 1e-11), (torch.float64, 1.0, 1e-13)])
def test_no_output_changes_and_each_shift_is_there(kind, dtype, strength, limit):
    model = build(kind).to(dtype)
    plan = plan_carrier(model)
    with torch.no_grad():
        before = entering(model, kind, plan)
        report = carry(model, KEY, forwards(model, kind), strength=strength)
        after = entering(model, kind, plan)
    assert report.price < limit and set(report.sites) == {site.name for site in plan.sites}
    for site in plan.sites:
        for layer in site.layers:
            shift = (after[layer] - before[layer]).numpy()
            np.testing.assert_allclose(
                shift / np.median(shift[shift > shift.max() / 2]) * 2, direction(KEY, site) + 1.0, atol=0.1
            )


def entering(model, kind, plan) -> dict[str, torch.Tensor]:
    """Means of what enters the layers of the sites."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda m, args, layer=layer: found.update({layer: flat(args[0], m).double().mean(0)})
        )
        for site in plan.sites
        for layer in site.layers
    ]
    forwards(model, kind)()
    for hook in hooks:
        hook.remove()
    return found


def flat(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
    return (x.movedim(1, -1) if isinstance(layer, torch.nn.Conv2d) else x).reshape(-1, layer.weight.shape[1])


@pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")
def test_every_class_of_the_table_is_tried_here():
    tried = set()
    for kind in TINY:
        name, config, _ = TINY[kind]
        with init_empty_weights():
            model = getattr(diffusers, name)(**config)
        tried |= {type(module).__name__ for module in model.modules()}
        if kind == "SD3":
            tried.add("SD3SingleTransformerBlock")  # of a ControlNet, which is no denoiser
    assert modulated._ROWS.keys() - tried == {"AuraFlowJointTransformerBlock"}


def test_an_average_with_the_twin_is_as_exact_as_its_parts():
    model = build("FLUX.1")
    clean = copy.deepcopy(model)
    carry(model, KEY, forwards(model, "FLUX.1"))
    old, before = clean.state_dict(), forwards(clean, "FLUX.1")()[0]
    clean.load_state_dict({name: (value + old[name]) / 2 for name, value in model.state_dict().items()})
    assert (forwards(clean, "FLUX.1")()[0] - before).square().mean() / before.square().mean() < 1e-11


@pytest.mark.parametrize(
    ("kind", "block", "fault"),
    [
        ("FLUX.1", "FluxSingleTransformerBlock", Row("norm:msa", "attn.to_q attn.to_k attn.to_v", "norm")),
        ("SD3", "JointTransformerBlock", Row("norm1:msa", "attn.to_q attn.to_v", "norm1")),
        ("CogVideoX", "CogVideoXBlock", Row("norm2:msa", "ff.net.0.proj", "norm2")),
        ("Wan", "WanTransformerBlock", Row("scale_shift_table:1/6", "ffn.net.0.proj", "norm3")),
    ],
    ids=["a layer too few", "keys left out", "one of two streams", "a scale for a shift"],
)
def test_a_row_that_is_wrong_changes_predictions_and_nothing_is_kept(monkeypatch, kind, block, fault):
    monkeypatch.setitem(modulated._ROWS, block, (fault,))
    model = build(kind)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(SiteError, match="changed by"):
        carry(model, KEY, forwards(model, kind))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "config", "told"),
    [
        ("AuraFlowTransformer2DModel", {"num_mmdit_layers": 1, "num_single_dit_layers": 1}, "no bias"),
        ("Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1}, "one modulation for all"),
        ("Lumina2Transformer2DModel", {"num_layers": 1}, "scaled but not shifted"),
        ("ZImageTransformer2DModel", {"n_layers": 1}, "scaled but not shifted"),
        ("MochiTransformer3DModel", {"num_layers": 1}, "scaled but not shifted"),
        ("Krea2Transformer2DModel", {"num_layers": 1}, "none of its blocks is known"),
    ],
)
def test_what_has_no_exact_site_is_refused_with_the_reason(name, config, told):
    with init_empty_weights():
        model = getattr(diffusers, name)(**config)
    plan = plan_carrier(model)
    assert plan.sites == ()
    assert any(told in reason for reason in plan.left_out.values()) or not plan.left_out
    with pytest.raises(SiteError, match=rf"{name} has no site.*{'' if plan.left_out else told}"):
        carry(model, KEY, lambda: pytest.fail("no forward before the refusal"))


def test_parts_without_a_bias_or_with_fused_projections_are_left_out_by_name():
    plan = plan_carrier(build("Sana"))
    assert {name.rpartition(".")[2] for name in plan.left_out} == {"norm1", "0"}
    assert set(plan.left_out.values()) == {"attn1.to_q has no bias", "attn1.to_v has no bias"}
    fused = build("FLUX.1")
    fused.fuse_qkv_projections()
    left = plan_carrier(fused).left_out
    assert left and set(left.values()) == {"the attention has fused projections"}


def test_keys_are_read_where_norms_or_a_second_stream_let_their_constants_through():
    def keys(kind: str) -> bool:
        return any(layer.endswith(".to_k") for site in plan_carrier(build(kind)).sites for layer in site.layers)

    assert keys("SD3") and keys("FLUX.1") and keys("Wan") and not keys("PixArt")
