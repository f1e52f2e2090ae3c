"""What a record may not say, one refusal at a time."""

from types import SimpleNamespace

import pytest
import torch
from _tiny import tiny_unet

from aiao_diffusers import LatentData
from aiao_diffusers.denoiser.call import DenoiserCall
from aiao_diffusers.denoiser.sites import Site
from aiao_diffusers.errors import RecordError
from aiao_diffusers.mark.record_checks import check_conditioning, check_order, is_gain


class TestGain:
    @pytest.mark.parametrize("value", [0, 0.0, 1, 1.0, 2.7, 100])
    def test_that_embedding_writes(self, value):
        assert is_gain(value, 100)

    @pytest.mark.parametrize(
        "value", [1e-300, 5e-324, 0.5, 0.999, -1, 101, float("nan"), float("inf"), True, "1", None]
    )
    def test_that_leaves_the_reading_to_ties_or_is_none(self, value):
        assert not is_gain(value, 100)


def bank(**conditioning):
    return LatentData(torch.zeros(2, 4, 8, 8), conditioning)


class TestConditioning:
    @pytest.mark.parametrize(
        "name",
        [
            *("encoder_hidden_states", "class_labels", "timestep_cond", "attention_mask", "encoder_attention_mask"),
            *("added_cond_kwargs.text_embeds", "added_cond_kwargs.time_ids", "added_cond_kwargs.image_embeds"),
        ],
    )
    def test_that_a_denoiser_takes(self, name):
        check_conditioning(bank(**{name: torch.zeros(2, 3)}), tiny_unet())

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "mid_block_additional_residual",
                "down_block_additional_residuals",
                "down_intrablock_additional_residuals",
            ),
            *("down_block_additional_residuals.x", "cross_attention_kwargs.gligen", "cross_attention_kwargs"),
            *(
                "added_cond_kwargs",
                "added_cond_kwargs.surprise",
                "pooled_projections",
                "sample",
                "timestep",
                "",
                "a.b",
            ),
            *("return_dict", "self"),
        ],
    )
    def test_that_it_does_not_take_or_that_reaches_into_it(self, name):
        with pytest.raises(RecordError, match="no condition that a UNet2DConditionModel takes"):
            check_conditioning(bank(**{name: torch.zeros(2, 3)}), tiny_unet())

    def test_rows_that_only_the_call_reads_and_those_inside_tuples_and_masks(self):
        rows = {"caps": 1, "rows_of.caps": 1, "beside": 1, "layers.0": 1, "joint_attention_kwargs.attention_mask": 1}
        call = DenoiserCall(listed=("caps",), ragged=("caps",), beside=("beside", 1))
        data = LatentData(torch.zeros(2, 4, 8, 8), {name: torch.zeros(2, 3) for name in rows}, call)

        def forward(sample, timestep, caps=None, layers=None, joint_attention_kwargs=None, residuals=None):
            pass

        check_conditioning(data, SimpleNamespace(forward=forward))
        for name in ("rows_of.layers", "other", "other.0", "layers.a", "residuals.0", "joint_attention_kwargs.scale"):
            wrong = LatentData(data.latents, {**data.conditioning, name: torch.zeros(2)}, call)
            with pytest.raises(RecordError, match=name):
                check_conditioning(wrong, SimpleNamespace(forward=forward))

    def test_a_forward_that_takes_any_name_takes_none_that_reaches_in(self):
        anything = SimpleNamespace(forward=lambda sample, **more: None)
        check_conditioning(bank(pooled_projections=torch.zeros(2, 3)), anything)
        with pytest.raises(RecordError, match="block_controlnet_hidden_states"):
            check_conditioning(bank(block_controlnet_hidden_states=torch.zeros(2, 3)), anything)


class TestOrder:
    layout = tuple(Site(name, order, 4, 4) for order, name in enumerate("abcd"))

    @pytest.mark.parametrize("reached", ["", "a", "abc", "abcd", "axbycd"])
    def test_as_claimed_as_far_as_the_forward_went(self, reached):
        check_order(self.layout, list(reached), set("abcdxy"))

    def test_sites_that_only_one_of_both_has_do_not_matter(self):
        check_order(self.layout, list("acx"), set("acdx"))
        check_order((), list("ba"), set("ab"))

    @pytest.mark.parametrize("reached", ["ba", "acb", "b", "aab", "abcda"])
    def test_another_order_or_one_passed_by(self, reached):
        with pytest.raises(RecordError, match="another order"):
            check_order(self.layout, list(reached), set("abcd"))
