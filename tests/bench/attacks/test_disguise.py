"""Function-preserving disguises keep what a model predicts and change its sites."""

import pytest
import torch
from _attacks import attacked, same
from _disguises import as_trained, conditional, latents
from _tiny import run, tiny_unet
from peft import LoraConfig

from aiao_diffusers.bench.attacks.disguise import KINDS, disguise
from aiao_diffusers.errors import ConfigError
from aiao_diffusers.verification.reference import observe


ALL = [*KINDS, "permute+flip+rotate+shear"]


class TestDisguise:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("linear", [False, True], ids=["conv", "linear"])
    def test_output_stays_and_sites_change(self, kind, linear):
        unet = conditional(use_linear_projection=linear, transformer_layers_per_block=2)
        with torch.no_grad():
            for p in unet.parameters():
                p += 0.05 * torch.randn(p.shape)
        before, shapes = run(unet), {n: p.shape for n, p in unet.state_dict().items()}
        clean = observe(unet, latents(), {})
        disguise(unet, kind)
        assert torch.allclose(run(unet), before, atol=1e-5 * before.abs().max().item())
        assert {n: p.shape for n, p in unet.state_dict().items()} == shapes
        after = observe(unet, latents(), {})
        moved = [
            not torch.allclose(getattr(after, side)[n], v, rtol=1e-2, atol=1e-2)
            for side in ("leaving", "entering")
            for n, v in getattr(clean, side).items()
        ]
        # Signs and factors may leave the residual stream alone, a shear leaves what LayerNorm gives.
        assert any(moved) if kind in ("flip", "shear") else all(moved)

    def test_arbitrary_signs_on_the_residual_stream_are_no_disguise(self):
        """The control: LayerNorm's mean forbids them, and the check above must see it."""
        from aiao_diffusers.bench.attacks import disguise as module

        def signs(width, random):
            matrix = torch.diag(1.0 - 2 * torch.randint(2, (width,), generator=random).double())
            return module.Change(matrix, matrix, lambda g, b: (matrix @ g, matrix @ b, torch.eye(width).double()))

        unet = as_trained()
        before = run(unet)
        for block in (m for m in unet.modules() if isinstance(m, module.Transformer2DModel)):
            with torch.no_grad():
                module._apply(block, signs(block.inner_dim, torch.Generator().manual_seed(0)))
        assert not torch.allclose(run(unet), before, atol=1e-3 * before.abs().max().item())

    def test_refusals_change_nothing(self):
        unet = as_trained()
        state = {n: p.clone() for n, p in unet.state_dict().items()}
        with pytest.raises(ConfigError, match="invert"):
            disguise(unet, "permute+invert")
        with pytest.raises(ConfigError, match="Transformer2DModel"):
            disguise(torch.nn.Linear(2, 2), "permute")
        assert all(torch.equal(p, state[n]) for n, p in unet.state_dict().items())
        unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        with pytest.raises(ConfigError, match="unload adapters"):
            disguise(unet, "permute")


def test_a_disguise_keeps_what_the_model_predicts(context):
    hidden = attacked(context, "disguise")
    assert not same(hidden, tiny_unet(1), atol=1e-3)
    assert torch.allclose(run(hidden), run(tiny_unet(1)), atol=1e-3)
