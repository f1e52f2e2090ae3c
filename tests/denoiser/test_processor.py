"""The processor around the installed one passes everything on."""

import pytest
import torch
from _tiny import tiny_unconditional, tiny_unet

from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.processor import AIAOAttnProcessor
from aiao_diffusers.denoiser.sites import attention_modules


def conditional():
    unet = tiny_unet(cross=8)
    return unet, torch.randn(2, 4, 8, 8), {"encoder_hidden_states": torch.randn(2, 3, 8)}


def unconditional():
    unet = tiny_unconditional(block_out_channels=(16, 32), norm_num_groups=8, attention_head_dim=8).eval()
    return unet, torch.randn(2, 3, 8, 8), {}


@pytest.fixture(params=[conditional, unconditional], ids=["text", "unconditional"])
def model(request):
    return request.param()


def run(unet, x, keywords):
    with torch.no_grad():
        return unet(x, torch.tensor([5, 500]), **keywords).sample


class TestProcessor:
    def test_unarmed_is_bit_identical(self, model):
        unet, x, keywords = model
        before = run(unet, x, keywords)
        with instrument(unet, list(attention_modules(unet))):
            assert all(isinstance(m.processor, AIAOAttnProcessor) for m in attention_modules(unet).values())
            assert torch.equal(run(unet, x, keywords), before)

    def test_keywords_reach_the_inner_processor(self):
        class Listening:
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, word=None, **kw):
                self.word = word
                return hidden_states

        unet, x, keywords = conditional()
        inner = Listening()
        unet.set_attn_processor(inner)
        with instrument(unet, list(attention_modules(unet))), torch.no_grad():
            unet(x, 5, **keywords, cross_attention_kwargs={"word": "heard"})
        assert inner.word == "heard"
