"""Sites are found in the order in which they run."""

import pytest
import torch
from _tiny import tiny_unet
from diffusers import AutoencoderKL
from peft import LoraConfig, get_peft_model
from torch import nn

from aiao_diffusers.denoiser.sites import attention_modules, refuse_folded_frames, trace, unwrap, watch_order
from aiao_diffusers.errors import NotTestableError, SiteError


def conditional():
    unet = tiny_unet(cross=8)
    return unet, torch.randn(2, 4, 8, 8), {"encoder_hidden_states": torch.randn(2, 3, 8)}


def run(unet, x, keywords):
    with torch.no_grad():
        return unet(x, torch.tensor([5, 500]), **keywords).sample


class TestSites:
    def test_order_of_execution(self):
        unet, x, keywords = conditional()
        names = [site.name for site in trace(unet, lambda: run(unet, x, keywords))]
        first = [name.split(".")[0] for name in names]
        assert first == sorted(first, key=["down_blocks", "mid_block", "up_blocks"].index)
        assert set(names) == set(attention_modules(unet)) and names != list(attention_modules(unet))

    def test_no_sites(self):
        with pytest.raises(SiteError, match="no attention sites"):
            attention_modules(torch.nn.Linear(2, 2))
        assert attention_modules(AutoencoderKL(norm_num_groups=8, block_out_channels=(8,)))  # has some


class Block(nn.Module):
    """Attention by a processor of its own, without `set_processor`; `fold` rows of its states are one sample's."""

    def __init__(self, fold=1, axes=3):
        super().__init__()
        self.fold, self.axes, self.processor = fold, axes, lambda module, states: states

    def forward(self, states):
        out = self.processor(self, states.repeat(self.fold, 1, 1))
        return out if self.axes == 3 else out.unsqueeze(1)


Block.__module__ = "diffusers.models.attention"


class TestRows:
    def traced(self, *blocks):
        denoiser, states = nn.Sequential(*blocks), torch.randn(1, 4, 8)

        def forward():
            for block in blocks:
                block(states)

        return [site.name for site in trace(denoiser, forward, rows=1)]

    def test_attention_over_other_rows_than_samples_is_no_site(self):
        assert self.traced(Block(), Block(fold=3), Block()) == ["0", "2"]
        with pytest.raises(SiteError, match="no attention whose rows are samples"):
            self.traced(Block(fold=2))

    def test_states_of_another_rank_are_refused(self):
        with pytest.raises(SiteError, match="takes states of 3 axes and returns 4"):
            self.traced(Block(), Block(axes=4))


@pytest.mark.slow
def test_the_order_is_seen_of_a_forward_that_ends_early_too():
    unet, x, keywords = conditional()
    sites = [site.name for site in trace(unet, lambda: run(unet, x, keywords))]

    def stop(*_):
        raise KeyboardInterrupt

    unet.mid_block.register_forward_hook(stop)
    with pytest.raises(KeyboardInterrupt), watch_order(unet) as reached:
        run(unet, x, keywords)
    assert reached == sites[: len(reached)] and 0 < len(reached) < len(sites)
    assert not any(module._forward_pre_hooks for module in unet.modules())


def test_wrappers_come_off_whatever_their_order():
    unet, config = tiny_unet(), LoraConfig(r=1, target_modules=["to_q"])
    assert unwrap(unet) is unet
    compiled = torch.compile(get_peft_model(nn.DataParallel(unet), config))
    assert unwrap(compiled) is unet
    nested = nn.Sequential(unet)
    nested.model = unet  # a module of a stranger with an attribute of that name is no wrapper
    assert unwrap(nested) is nested


def test_frames_in_the_batch_are_refused_by_name():
    refuse_folded_frames("UNet2DConditionModel")
    for name in ("UNetMotionModel", "UNet3DConditionModel", "UNetSpatioTemporalConditionModel"):
        with pytest.raises(NotTestableError, match=name):
            refuse_folded_frames(name)
