"""Tiny transformers of every kind that carries the key, with random weights, and inputs that each takes."""

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import nn


def _draw(*shape: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


_TEXT = _draw(2, 5, 16)
_TIME = torch.tensor([100.0, 700.0])
_PICTURE = {"hidden_states": _draw(2, 4, 8, 8), "encoder_hidden_states": _TEXT, "timestep": _TIME}
_VIDEO = _PICTURE | {"hidden_states": _draw(2, 4, 2, 8, 8)}
_MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2}
_FLUX = {
    "hidden_states": _draw(2, 16, 4),
    "encoder_hidden_states": _TEXT,
    "timestep": _TIME / 1000,
    "img_ids": torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(4)).float(),
    "txt_ids": torch.zeros(5, 3),
}
_FLUX_SIZE = {"in_channels": 4, "num_single_layers": 2, "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)}
_SIZES = {
    "original_size": torch.full((2, 2), 64.0),
    "target_size": torch.full((2, 2), 64.0),
    "crop_coords": torch.zeros(2, 2),
}

TINY: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "SD3": (
        "SD3Transformer2DModel",
        _HEADS
        | {"sample_size": 8, "in_channels": 4, "joint_attention_dim": 16, "caption_projection_dim": 32}
        | {"pooled_projection_dim": 8, "out_channels": 4, "pos_embed_max_size": 8},
        _PICTURE | {"pooled_projections": _draw(2, 8)},
    ),
    "FLUX.1": (
        "FluxTransformer2DModel",
        _HEADS | _FLUX_SIZE | {"pooled_projection_dim": 8, "guidance_embeds": True},
        _FLUX | {"pooled_projections": _draw(2, 8), "guidance": torch.tensor([3.5, 3.5])},
    ),
    "Bria": (
        "BriaTransformer2DModel",
        _HEADS | _FLUX_SIZE,
        _FLUX | {"timestep": _TIME},
    ),
    "LongCat": ("LongCatImageTransformer2DModel", _HEADS | _FLUX_SIZE, _FLUX),
    "Ovis": ("OvisImageTransformer2DModel", _HEADS | _FLUX_SIZE | {"out_channels": 4}, _FLUX),
    "Chroma": (
        "ChromaTransformer2DModel",
        _HEADS
        | _FLUX_SIZE
        | {"approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 1},
        _FLUX,
    ),
    "Qwen-Image": (
        "QwenImageTransformer2DModel",
        _HEADS | {"in_channels": 4, "out_channels": 1, "joint_attention_dim": 16, "axes_dims_rope": (4, 6, 6)},
        {name: _FLUX[name] for name in ("hidden_states", "encoder_hidden_states", "timestep")}
        | {"encoder_hidden_states_mask": _MASK.bool(), "img_shapes": [[(1, 4, 4)]] * 2},
    ),
    "Wan": (
        "WanTransformer3DModel",
        _HEADS | {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 64},
        _VIDEO,
    ),
    "SkyReels": (
        "SkyReelsV2Transformer3DModel",
        _HEADS | {"in_channels": 4, "out_channels": 4, "text_dim": 16, "freq_dim": 32, "ffn_dim": 64},
        _VIDEO,
    ),
    "LTX": (
        "LTXVideoTransformer3DModel",
        _HEADS | {"in_channels": 4, "out_channels": 4, "cross_attention_dim": 32, "caption_channels": 16},
        {"hidden_states": _draw(2, 16, 4), "encoder_hidden_states": _TEXT, "timestep": _TIME}
        | {"encoder_attention_mask": _MASK, "num_frames": 1, "height": 4, "width": 4},
    ),
    "PixArt": (
        "PixArtTransformer2DModel",
        _HEADS | {"in_channels": 4, "sample_size": 8, "cross_attention_dim": 32, "caption_channels": 16},
        _PICTURE | {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "DiT": (
        "DiTTransformer2DModel",
        _HEADS | {"in_channels": 4, "sample_size": 8, "num_embeds_ada_norm": 10},
        {"hidden_states": _PICTURE["hidden_states"], "timestep": _TIME.long(), "class_labels": torch.tensor([1, 2])},
    ),
    "Sana": (
        "SanaTransformer2DModel",
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "sample_size": 8, "caption_channels": 16, "cross_attention_dim": 32}
        | {"num_cross_attention_heads": 2, "cross_attention_head_dim": 16},
        _PICTURE,
    ),
    "HunyuanVideo": (
        "HunyuanVideoTransformer3DModel",
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 16}
        | {"pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6)},
        _VIDEO
        | {"encoder_attention_mask": _MASK, "pooled_projections": _draw(2, 8), "guidance": torch.tensor([6.0, 6.0])},
    ),
    "HunyuanImage": (
        "HunyuanImageTransformer2DModel",
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "num_single_layers": 2, "num_refiner_layers": 1, "text_embed_dim": 16}
        | {"rope_axes_dim": (8, 8)},
        _PICTURE | {"encoder_attention_mask": _MASK},
    ),
    "CogVideoX": (
        "CogVideoXTransformer3DModel",
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 16, "sample_width": 8}
        | {"sample_height": 8, "sample_frames": 5, "max_text_seq_length": 5},
        _VIDEO | {"hidden_states": _draw(2, 2, 4, 8, 8)},
    ),
    "CogView4": (
        "CogView4Transformer2DModel",
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4}
        | {"pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (8, 8)},
        _PICTURE | _SIZES,
    ),
    "CogView3Plus": (
        "CogView3PlusTransformer2DModel",
        _HEADS
        | {"in_channels": 4, "out_channels": 4, "text_embed_dim": 16, "time_embed_dim": 8, "condition_dim": 4}
        | {"pos_embed_max_size": 8, "sample_size": 8},
        _PICTURE | _SIZES,
    ),
    "Allegro": (
        "AllegroTransformer3DModel",
        _HEADS
        | {"in_channels": 4, "sample_height": 8, "sample_width": 8, "sample_frames": 2, "cross_attention_dim": 48}
        | {"caption_channels": 16, "attention_head_dim": 24},
        _VIDEO,
    ),
}
"""Kind -> class, config, inputs of a forward."""
TINY |= {
    "SD3.5": (
        TINY["SD3"][0],
        TINY["SD3"][1] | {"dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        TINY["SD3"][2],
    ),
    "Wan of pictures": (
        TINY["Wan"][0],
        TINY["Wan"][1] | {"image_dim": 8, "added_kv_proj_dim": 32},
        TINY["Wan"][2] | {"encoder_hidden_states": _draw(2, 512, 16), "encoder_hidden_states_image": _draw(2, 3, 8)},
    ),
    "HunyuanVideo of pictures": (
        TINY["HunyuanVideo"][0],
        TINY["HunyuanVideo"][1] | {"image_condition_type": "token_replace"},
        TINY["HunyuanVideo"][2],
    ),
    "Wan VACE": (
        "WanVACETransformer3DModel",
        TINY["Wan"][1] | {"vace_layers": [0, 1], "vace_in_channels": 4},
        _VIDEO | {"control_hidden_states": _draw(2, 4, 2, 8, 8, seed=6)},
    ),
    "HunyuanVideo 1.5": (
        "HunyuanVideo15Transformer3DModel",
        _HEADS
        | {
            "in_channels": 4,
            "out_channels": 4,
            "num_refiner_layers": 1,
            "text_embed_dim": 16,
            "rope_axes_dim": (4, 6, 6),
        }
        | {"text_embed_2_dim": 8, "image_embed_dim": 8},
        _VIDEO
        | {"encoder_attention_mask": _MASK, "encoder_hidden_states_2": _draw(2, 3, 8), "image_embeds": _draw(2, 3, 8)}
        | {"encoder_attention_mask_2": torch.ones(2, 3)},
    ),
    "Sana with biases": (TINY["Sana"][0], TINY["Sana"][1] | {"attention_bias": True}, TINY["Sana"][2]),
}


def build(kind: str, **changes: object) -> nn.Module:
    """The transformer, `changes` replacing fields of its config, every parameter random: gates, shifts and biases at work as after training."""
    name, config, _ = TINY[kind]
    torch.manual_seed(0)
    model = getattr(diffusers, name)(**(config | changes)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.ndim < 2 else 1 / parameter[0].numel() ** 0.5
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def forwards(model: nn.Module, kind: str) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """Runs it on its inputs, in the dtype that it is in."""

    def run() -> tuple[torch.Tensor, torch.Tensor]:
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            found = model(**{name: _cast(value, dtype) for name, value in TINY[kind][2].items()}, return_dict=False)[0]
        return found.float().cpu(), torch.zeros_like(found, dtype=torch.float32)

    return run


def _cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
