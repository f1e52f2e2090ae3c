"""The processor around the installed one passes everything on."""

import torch
from _tiny import of_both_kinds, predict

from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.processor import AIAOAttnProcessor
from aiao_diffusers.denoiser.sites import attention_modules


class TestProcessor:
    def test_unarmed_is_bit_identical(self, model):
        unet, x, keywords = model
        before = predict(unet, x, keywords)
        with instrument(unet, list(attention_modules(unet))):
            assert all(isinstance(m.processor, AIAOAttnProcessor) for m in attention_modules(unet).values())
            assert torch.equal(predict(unet, x, keywords), before)

    def test_keywords_reach_the_inner_processor(self):
        class Listening:
            def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, word=None, **kw):
                self.word = word
                return hidden_states

        unet, x, keywords = of_both_kinds("text")
        inner = Listening()
        unet.set_attn_processor(inner)
        with instrument(unet, list(attention_modules(unet))), torch.no_grad():
            unet(x, 5, **keywords, cross_attention_kwargs={"word": "heard"})
        assert inner.word == "heard"
