"""A message in the latents: learnt, read by its own rule, and no where no is due."""

import pytest
import torch
from _peers import ASKED, KEY

from aiao_diffusers.bench.context import AttackContext
from aiao_diffusers.bench.peers.latent_message import carriers, decode, message
from aiao_diffusers.bench.registry import METHODS
from aiao_diffusers.errors import ConfigError


def test_a_message_is_read_from_finished_pictures(unprompted, tmp_path, monkeypatch):
    """Through the VAE and 8-bit pictures: latents that hold the message, decoded in place of what a denoiser draws."""
    shape = torch.Size((4, 16, 16))
    told = torch.einsum("b,bchw->chw", torch.from_numpy(message(KEY)).float(), carriers(KEY, shape))
    latents = 0.2 * torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) + 3 * told

    def draw(self, denoiser, prompts, *, seeds, steps, guidance=1.0):
        vae = self.pipe.vqvae
        with torch.no_grad():
            return (vae.decode(latents / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    monkeypatch.setattr(AttackContext, "draw", draw)
    method = METHODS["drawn_message"]()
    assert method.verify(unprompted.base, KEY, unprompted, tmp_path, **ASKED).verdict == "verified"
    wrong = method.verify(unprompted.base, KEY.child("wrong"), unprompted, tmp_path, **ASKED)
    assert wrong.verdict == "not_verified"


@pytest.mark.parametrize(
    ("name", "model"), [("sleepermark", "context"), ("drawn_message", "context"), ("drawn_message", "unprompted")]
)
def test_a_message_s_rule_says_no_where_no_is_due(name, model, tmp_path, request):
    context = request.getfixturevalue(model)
    found = METHODS[name]().verify(context.base, KEY, context, tmp_path, **ASKED)
    assert found.verdict == "not_verified" and (found.passed, found.trials, found.evals) == (0, 3, 24)


def test_a_message_is_told_from_a_slowly_varying_picture():
    shape = torch.Size((4, 16, 16))
    made, told = carriers(KEY, shape), torch.from_numpy(message(KEY)).float()
    assert torch.allclose(made.flatten(1) @ made.flatten(1).T, torch.eye(64), atol=1e-5)
    slope = torch.linspace(-3, 3, 16).expand(1, 4, 16, 16)
    read = decode(slope + torch.einsum("b,bchw->chw", told, made), KEY)[0]
    assert told.sum() == 0 and (read.sign() == told).float().mean() > 0.95
    assert (decode(slope, KEY)[0].sign() == told).float().mean() < 0.7


def test_a_residual_of_no_strength_is_refused():
    with pytest.raises(ConfigError, match="strength must be positive"):
        METHODS["sleepermark"](strength=0.0)
