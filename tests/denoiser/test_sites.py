"""Sites are found in the order in which they run."""

import pytest
import torch
from _tiny import tiny_unet
from diffusers import AutoencoderKL

from aiao_diffusers.denoiser.sites import attention_modules, trace
from aiao_diffusers.errors import SiteError


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
