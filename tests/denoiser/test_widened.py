"""A denoiser with more inputs than a bank holds is called with what is known, and is itself again afterwards."""

import pytest
import torch
from _tiny import tiny_unet, widened
from torch import nn

from aiao_diffusers import LatentData
from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.denoiser.widened import on_known_inputs


DATA = LatentData(
    torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
    {"encoder_hidden_states": torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(2))},
)


@torch.no_grad()
def answer(unet: nn.Module) -> torch.Tensor:
    return unet(DATA.latents, timestep=torch.tensor([10, 500]), **DATA.keywords()).sample


@pytest.mark.parametrize("channels", [5, 7, 8, 9])
def test_channels_beyond_the_bank_are_zero(channels):
    unet = tiny_unet()
    wide = widened(unet, in_channels=channels)
    before = tensor_sha256(wide)
    with on_known_inputs(wide, DATA) as notes:
        torch.testing.assert_close(answer(wide), answer(unet), rtol=0, atol=1e-6)
    assert f"takes {channels} channels" in notes[0] and f"other {channels - 4} were zero" in notes[0]
    assert tensor_sha256(wide) == before
    with pytest.raises(RuntimeError):  # the hook is gone
        answer(wide)


def test_classes():
    unet = tiny_unet()
    wide = widened(unet, num_class_embeds=3)
    wide.class_embedding.weight.data.zero_()
    with on_known_inputs(wide, DATA) as notes:
        torch.testing.assert_close(answer(wide), answer(unet), rtol=0, atol=1e-6)
    assert "classes" in notes[0]
    with pytest.raises(ValueError, match="class_labels"):
        answer(wide)


@pytest.mark.parametrize("kind", ["timestep", "identity", "projection", "simple_projection"])
def test_class_vectors(kind):
    wide = widened(tiny_unet(), class_embed_type=kind, projection_class_embeddings_input_dim=6)
    with on_known_inputs(wide, DATA):
        assert answer(wide).isfinite().all()


def test_a_projection_of_other_text_is_passed_by():
    unet = tiny_unet()
    wide = widened(unet, encoder_hid_dim=20, encoder_hid_dim_type="text_proj")
    before = tensor_sha256(wide)
    with on_known_inputs(wide, DATA) as notes:
        assert torch.equal(answer(wide), answer(unet))
        assert tensor_sha256(wide) == before  # the projection is passed by, not taken out
    assert "width 20" in notes[0] and wide.config.encoder_hid_dim_type == "text_proj"
    same = widened(unet, encoder_hid_dim=12, encoder_hid_dim_type="text_proj")
    with on_known_inputs(same, DATA) as notes:
        assert notes == () and not torch.equal(answer(same), answer(unet))


def test_a_denoiser_of_the_bank_is_called_as_ever():
    unet = tiny_unet()
    expected = answer(unet)
    with on_known_inputs(unet, DATA) as notes:
        assert notes == () and not unet._forward_pre_hooks and torch.equal(answer(unet), expected)


def test_everything_is_put_back_after_an_exception():
    wide = widened(
        tiny_unet(), in_channels=9, num_class_embeds=2, encoder_hid_dim=20, encoder_hid_dim_type="text_proj"
    )
    with pytest.raises(KeyError), on_known_inputs(wide, DATA) as notes:
        assert len(notes) == 3
        raise KeyError
    assert not wide._forward_pre_hooks and wide.config.encoder_hid_dim_type == "text_proj"
