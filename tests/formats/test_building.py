"""Configs of published families pass, and what no model is built like is stopped before memory or time goes."""

import time
from threading import Thread

import pytest
import torch
from _kind import sample
from torch import nn

from aiao_diffusers.errors import AIAOError, UnsafeFileError
from aiao_diffusers.formats import building
from aiao_diffusers.formats.architecture import blank_of_config, known_config
from aiao_diffusers.formats.building import build_blank


# As published on the Hub; a class alone where its defaults are the published model's.
PUBLISHED = {
    "SDXL": (
        "UNet2DConditionModel",
        {
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "block_out_channels": [320, 640, 1280],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "sample_size": 128,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
    ),
    "SD 3.5 Medium": (
        "SD3Transformer2DModel",
        {
            "num_attention_heads": 24,
            "num_layers": 24,
            "caption_projection_dim": 1536,
            "pos_embed_max_size": 384,
            "qk_norm": "rms_norm",
            "dual_attention_layers": list(range(13)),
        },
    ),
    "SD 3.5 Large": (
        "SD3Transformer2DModel",
        {"num_attention_heads": 38, "num_layers": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192},
    ),
    "FLUX.1 dev": ("FluxTransformer2DModel", {"guidance_embeds": True}),
    "FLUX.2 dev": ("Flux2Transformer2DModel", {}),
    "Chroma": ("ChromaTransformer2DModel", {}),
    "Krea 2": ("Krea2Transformer2DModel", {}),
    "ERNIE-Image": ("ErnieImageTransformer2DModel", {"hidden_size": 4096, "ffn_hidden_size": 12288, "num_layers": 36}),
    "Ideogram 4": ("Ideogram4Transformer2DModel", {}),
    "Z-Image": ("ZImageTransformer2DModel", {}),
    "Qwen-Image": ("QwenImageTransformer2DModel", {}),
    "Lumina 2": ("Lumina2Transformer2DModel", {}),
    "Sana 4K": ("SanaTransformer2DModel", {"sample_size": 128}),
    "PixArt-Sigma 2K": ("PixArtTransformer2DModel", {"sample_size": 256, "interpolation_scale": 4}),
    "AuraFlow": ("AuraFlowTransformer2DModel", {"pos_embed_max_size": 9216}),
    "HunyuanVideo": ("HunyuanVideoTransformer3DModel", {}),
    "Wan 2.2 A14B": ("WanTransformer3DModel", {"num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}),
    "Wan 2.2 5B": (
        "WanTransformer3DModel",
        {"num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30, "in_channels": 48, "out_channels": 48},
    ),
    "LTX-Video": ("LTXVideoTransformer3DModel", {}),
    "LTX-2": ("LTX2VideoTransformer3DModel", {}),
    "Mochi": ("MochiTransformer3DModel", {}),
    "CogVideoX 1.5": (
        "CogVideoXTransformer3DModel",
        {
            "num_attention_heads": 48,
            "num_layers": 42,
            "patch_size_t": 2,
            "sample_width": 300,
            "sample_height": 300,
            "sample_frames": 81,
            "use_rotary_positional_embeddings": True,
        },
    ),
    "Cosmos": ("CosmosTransformer3DModel", {"num_attention_heads": 40, "num_layers": 36, "max_size": [128, 240, 240]}),
    "CogView 4": ("CogView4Transformer2DModel", {"num_attention_heads": 32, "attention_head_dim": 128}),
    "GLM-Image": ("GlmImageTransformer2DModel", {}),
    "Cosmos 3": ("Cosmos3OmniTransformer", {}),
    "HiDream": (
        "HiDreamImageTransformer2DModel",
        {
            "patch_size": 2,
            "in_channels": 16,
            "caption_channels": [4096, 4096],
            "llama_layers": [*range(32), *[31] * 16],
            "axes_dims_rope": [64, 32, 32],
        },
    ),
    "MiniMax-H3": ("MiniMaxH3Transformer3DModel", {}),
}
SLOW = {"LTX-2", "SDXL"}


def blank(name: str, tensors: int, **config: object) -> nn.Module:
    model_class, known = known_config({"_class_name": name, **config}, "config.json", tensors)
    return blank_of_config(model_class, known)


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in sample(PUBLISHED, 16)]
)
def test_published_families_pass(family):
    name, config = PUBLISHED[family]
    model = blank(name, 400, **config)
    assert all(tensor.is_meta for tensor in model.state_dict().values())
    assert sum(p.numel() for p in model.parameters()) > 5e8


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DiTTransformer2DModel", {"sample_size": 2**15}),
        ("DiTTransformer2DModel", {"sample_size": 2**12, "num_attention_heads": 2**10}),
        ("PixArtTransformer2DModel", {"sample_size": 2**14}),
        ("SD3Transformer2DModel", {"pos_embed_max_size": 2**20}),
        ("CogVideoXTransformer3DModel", {"sample_frames": 2**15, "sample_width": 2**15, "sample_height": 2**15}),
        ("WanTransformer3DModel", {"rope_max_seq_len": 2**24}),
        ("WanTransformer3DModel", {"rope_max_seq_len": 10**9}),
        ("FluxTransformer2DModel", {"num_layers": 10**9}),
        ("Krea2Transformer2DModel", {"intermediate_size": 10**12}),
        ("UNet2DConditionModel", {"sample_size": 10**6}),
        ("QwenImageTransformer2DModel", {"num_attention_heads": 2**24, "attention_head_dim": 2**24}),
    ],
    ids=str,
)
def test_nonsense_is_stopped_at_once(name, config):
    started = time.monotonic()
    with pytest.raises(AIAOError):
        blank(name, 400, **config)
    assert time.monotonic() - started < 10


class Tables(nn.Module):
    """A table on the CPU, whatever the device asked for, and one weight."""

    def __init__(self, side: int, times: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.table = torch.outer(torch.arange(side, device="cpu"), torch.arange(side, device="cpu"))
        for _ in range(times):
            torch.zeros(1)


def test_tables_are_measured_without_memory_also_those_put_on_the_cpu():
    side = int((building.MAX_TABLE_BYTES / 8) ** 0.5)
    assert build_blank(lambda: Tables(side - 1000)).table.is_meta
    with pytest.raises(UnsafeFileError, match="tables of 32 GiB, at most 32"):
        build_blank(lambda: Tables(side + 1))


def test_steps_are_counted(monkeypatch):
    monkeypatch.setattr(building, "MAX_OPERATIONS", 1000)
    build_blank(lambda: Tables(1, 990))
    with pytest.raises(UnsafeFileError, match="over 1000 steps"):
        build_blank(lambda: Tables(1, 1000))


def test_other_threads_build_in_earnest():
    seen: list[nn.Module] = []

    def build() -> nn.Module:
        thread = Thread(target=lambda: seen.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
        return nn.Linear(2, 2)

    assert build_blank(build).weight.is_meta and not seen[0].weight.is_meta
    assert not nn.Linear(2, 2).weight.is_meta
