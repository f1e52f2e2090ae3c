"""How a denoiser is called: by keyword, and without the variances that some predict beside the noise."""

from types import SimpleNamespace

import torch
from _tiny import run, tiny_unconditional, tiny_unet

from aiao_diffusers.denoiser.call import prediction


def test_it_is_the_plain_call():
    random = torch.Generator().manual_seed(7)
    sample, text = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 5, 12, generator=random)
    with torch.no_grad():
        found = prediction(tiny_unet(), sample, torch.tensor([10, 500]), {"encoder_hidden_states": text})
    assert torch.equal(found, run(tiny_unet()))


def test_variances_are_left_out():
    unet, sample = tiny_unconditional(out_channels=6), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        whole, found = unet(sample, 5).sample, prediction(unet, sample, torch.tensor([5, 5]), {})
    assert whole.shape[1] == 6 and torch.equal(found, whole[:, :3])


def test_the_keywords_arrive():
    seen = {}

    def denoiser(sample, timestep, **keywords):
        seen.update(keywords, timestep=timestep)
        return SimpleNamespace(sample=sample)

    sample = torch.zeros(1, 2, 3)
    assert prediction(denoiser, sample, torch.tensor([4]), {"added": {"a": 1}}) is not None
    assert seen == {"timestep": torch.tensor([4]), "added": {"a": 1}}
