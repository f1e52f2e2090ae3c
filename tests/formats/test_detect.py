"""What a file or folder holds, told without reading a tensor."""

import json
from pathlib import Path

import pytest
import torch
from _tiny import BOTH_LEVELS, factors, tiny_unet, write
from _transformers import build
from diffusers import ControlNetModel
from safetensors.torch import save_file
from torch import nn

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import (
    LoraNotLoadedError,
    NotTestableError,
    SeveralSuspectsError,
    SuspectError,
    UnsafeFileError,
)
from aiao_diffusers.files.paths import list_weight_files
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect, detect_adapter, detect_denoisers
from aiao_diffusers.formats.lora import apply_lora


@pytest.fixture
def unet() -> nn.Module:
    return tiny_unet()


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path)
    return path


def refused(source: Path, unet: nn.Module, error: type, match: str, **options) -> None:
    before = tensor_sha256(unet)
    with pytest.raises(error, match=match), apply_lora(unet, source, **options):
        pass
    assert tensor_sha256(unet) == before


@pytest.fixture
def folder(tmp_path, unet) -> Path:
    unet.save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


class TestWhichFile:
    @pytest.fixture
    def pipeline(self, tmp_path, unet) -> Path:
        unet.save_pretrained(tmp_path / "unet")
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        return tmp_path

    def test_a_named_adapter_inside_a_pipeline(self, pipeline, unet):
        write(pipeline, "kohya", factors(unet, BOTH_LEVELS, 2), 2.0)
        (beside,) = detect(pipeline).also_present
        assert detect(pipeline).kind == "pipeline" and (beside.path, beside.kind) == ("kohya.safetensors", "lora")
        assert detect(pipeline, "kohya.safetensors").kind == "lora"
        with apply_lora(unet, pipeline, weight_name="kohya.safetensors") as loaded:
            assert loaded.modules == 2

    def test_a_broken_bystander_is_nobodys_problem(self, pipeline):
        (pipeline / "junk.safetensors").write_bytes(b"junk")
        assert detect(pipeline).kind == "pipeline" and detect(pipeline).also_present == ()
        with pytest.raises(UnsafeFileError):
            detect(pipeline, "junk.safetensors")

    def test_adapter_folders_of_a_pipelines_parts(self, tmp_path, unet):
        write(tmp_path / "unet", "peft", factors(unet, BOTH_LEVELS, 2), 2.0)
        assert detect(tmp_path).kind == "lora"
        with apply_lora(unet, tmp_path) as loaded:
            assert loaded.kind == "peft" and loaded.modules == 2

    @pytest.mark.parametrize(
        ("key", "kind"),
        [
            ("ip_adapter_proj_model.proj.weight", "ip_adapter"),
            ("adapter.body.0.in_conv.weight", "controlnet"),
            ("down_blocks.0.motion_modules.0.proj_in.weight", "motion_adapter"),
        ],
    )
    def test_kinds_that_are_no_fine_tune(self, tmp_path, unet, key, kind):
        source = save(tmp_path / "x.safetensors", {key: torch.ones(2, 2)})
        assert detect(source).kind == kind
        refused(source, unet, LoraNotLoadedError, kind)
        with pytest.raises(SuspectError, match=kind):
            load_denoiser(source, base=unet)


class TestDetect:
    def test_folders(self, tmp_path, folder):
        assert detect(folder).kind == "denoiser"
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        assert detect(tmp_path).kind == "pipeline"

    @pytest.mark.parametrize("fmt", ["kohya", "peft", "diffusers-old", "diffusers-metadata", "comfy-ldm"])
    def test_adapters(self, tmp_path, unet, fmt):
        assert detect(write(tmp_path, fmt, factors(unet, BOTH_LEVELS, 2), 1.0)).kind == "lora"

    @pytest.mark.parametrize(
        ("keys", "kind"),
        [
            (["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"], "denoiser"),
            (["unet.transformer_blocks.0.attn.to_q.weight"], "denoiser"),
            (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "single_file"),
            (["emb_params"], "textual_inversion"),
            (["<toy>", "<toy>_1"], "textual_inversion"),
            (["lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"], "text_encoder_only"),
            (["text_encoder.text_model.encoder.layers.0.q_proj.lora_A.weight"], "text_encoder_only"),
            (["text_model.embeddings.token_embedding.weight"], "text_encoder_only"),
            *(
                ([f"{prefix}{layer}.lora_up.weight", f"{prefix}{layer}.alpha"], "text_encoder_only")
                for layer in ("text_model.encoder.layers.0.mlp.fc1", "encoder_layers_0_mlp_fc1")
                for prefix in (
                    "text_encoders.clip_l.transformer.",
                    "text_encoders.clip_g.transformer.",
                    "text_encoders.t5xxl.transformer.",
                    "clip_l.",
                    "clip_g.",
                    "te1.",
                    "lora_te1_",
                    "lora_te3_",
                    "lora_prior_te_",
                    "cond_stage_model.transformer.",
                    "conditioner.embedders.0.transformer.",
                    "base_model.model.text_model.",
                )
            ),
            (["clip_l", "clip_g"], "textual_inversion"),
            (["lora_unet_down_blocks_0_attentions_0_proj_in.a1.weight"], "lora"),
            (["base_model.model.conv_in.boft_R"], "lora"),
            (["oft_unet_conv_in.oft_blocks"], "lora"),
            (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "ip_adapter"),
            (["control_model.time_embed.0.weight"], "controlnet"),
            (["controlnet_cond_embedding.conv_in.weight", "down_blocks.0.x"], "controlnet"),
            (["encoder.down_blocks.0.x", "decoder.conv_in.weight"], "unknown"),
            (["hello.world"], "unknown"),
            ([], "unknown"),
        ],
    )
    def test_keys(self, tmp_path, keys, kind):
        save_file({k: torch.ones(1, 4) for k in keys}, tmp_path / "x.safetensors")
        assert detect(tmp_path / "x.safetensors").kind == kind

    @pytest.mark.parametrize(
        ("keys", "name"),
        [
            (["down_blocks.0.attentions.0.attn2.processor.to_k_custom_diffusion.weight"], "Custom Diffusion"),
            (["conv_in.delta", "conv_out.delta"], "SVDiff"),
            (["unet:0:up", "unet:0:down"], "unet:0:up"),
            (["image_proj.proj.weight", "unet.conv_in.weight"], "IP-Adapter beside weights of a U-Net"),
            (["image_proj.proj.weight", "ip_adapter.1.to_q_lora.down.weight"], "FaceID"),
            (["base_model.model.conv_in.fourierft_spectrum"], "FourierFT"),
            (["base_model.model.conv_in.hra_u"], "HRA"),
            (["base_model.model.conv_in.oft_r"], "OFT of peft before"),
        ],
    )
    def test_what_changes_the_denoiser_and_is_not_read_is_named(self, tmp_path, unet, keys, name):
        source = save(tmp_path / "x.safetensors", {k: torch.ones(2) for k in keys})
        assert detect(source).kind == "lora" and name in detect(source).detail
        refused(source, unet, NotTestableError, f"changes the denoiser in a way that is not read here: .*{name}")

    def test_shifts_of_a_text_encoder_are_none_of_the_denoiser(self, tmp_path):
        source = save(tmp_path / "x.safetensors", {"text_model.final_layer_norm.delta": torch.ones(2)})
        assert detect(source).kind == "text_encoder_only"

    def test_control_networks_are_not_denoisers(self, tmp_path, unet):
        ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8,)).save_pretrained(tmp_path)
        assert detect(tmp_path).kind == "controlnet"
        with pytest.raises(SuspectError, match="no denoiser"):
            load_denoiser(tmp_path)

    def test_an_embedding_beside_an_adapter_does_not_hide_it(self, tmp_path, unet):
        write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 1.0)
        save_file({"emb_params": torch.ones(1, 4)}, tmp_path / "e.safetensors")
        found = detect(tmp_path)
        assert found.kind == "lora" and [p.name for p in found.files] == ["kohya.safetensors"]
        assert "e.safetensors (textual_inversion)" in found.warnings[0]
        assert detect(tmp_path, "e.safetensors").kind == "textual_inversion"
        assert [p.name for p in list_weight_files(tmp_path)] == ["e.safetensors", "kohya.safetensors"]

    def test_a_whole_model_beside_an_adapter_needs_a_name(self, tmp_path, unet):
        write(tmp_path, "kohya", factors(unet, BOTH_LEVELS, 2), 1.0)
        save_file(unet.state_dict(), tmp_path / "whole.safetensors")
        assert detect(tmp_path).kind == "unknown" and "denoiser, lora" in detect(tmp_path).detail
        assert {item.path for item in detect(tmp_path).also_present} == {"kohya.safetensors", "whole.safetensors"}
        assert detect(tmp_path, "whole.safetensors").kind == "denoiser"

    def test_an_adapter_beside_a_whole_denoiser_is_named(self, folder, unet):
        """Also one in peft's own names: `from_pretrained` runs the whole denoiser, and who wants the adapter asks for one."""
        write(folder, "peft", factors(unet, BOTH_LEVELS, 2), 1.0)
        found = detect(folder)
        assert found.kind == "denoiser"
        assert [(item.path, item.kind) for item in found.also_present] == [("adapter_model.safetensors", "lora")]
        assert detect_adapter(folder).kind == "lora"

    def test_two_adapters_need_a_name_also_beside_pefts_config(self, tmp_path, unet):
        made = factors(unet, BOTH_LEVELS, 2)
        write(tmp_path, "peft", made, 1.0)
        assert detect_adapter(tmp_path).path.name == "adapter_model.safetensors"
        write(tmp_path, "kohya", made, 1.0)
        for look in (detect, detect_adapter):
            with pytest.raises(
                SeveralSuspectsError, match=r"adapter_model\.safetensors, kohya\.safetensors.*weight_name="
            ):
                look(tmp_path)
        refused(tmp_path, unet, SuspectError, "weight_name=")
        assert detect(tmp_path, "kohya.safetensors").kind == "lora"
        with pytest.raises(SeveralSuspectsError) as caught:
            detect(tmp_path)
        assert [item.path for item in caught.value.also_present] == ["adapter_model.safetensors", "kohya.safetensors"]

    def test_a_broken_neighbour_does_not_stop_pefts_adapter(self, tmp_path, unet):
        write(tmp_path, "peft", factors(unet, BOTH_LEVELS, 2), 1.0)
        (tmp_path / "junk.safetensors").write_bytes(b"junk")
        assert detect(tmp_path).kind == "lora"


class TestTwoDenoisers:
    """Wan 2.2 runs one denoiser on the noisy steps and another on the rest."""

    @pytest.fixture
    def pipeline(self, tmp_path) -> Path:
        for part in ("transformer", "transformer_2"):
            build("Wan").save_pretrained(tmp_path / part)
        named = {part: ["diffusers", "WanTransformer3DModel"] for part in ("transformer_2", "transformer")}
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline", **named}))
        return tmp_path

    def test_they_are_one_pipeline_whose_first_is_judged(self, pipeline):
        found = detect(pipeline)
        assert (found.kind, found.path.name, found.several) == ("pipeline", "transformer", False)
        (other,) = found.also_present
        assert other.path == "transformer_2/diffusion_pytorch_model.safetensors" and "another denoiser" in other.why
        both = detect_denoisers(pipeline)
        assert list(both) == ["transformer", "transformer_2"] and both["transformer"] == found
        assert both["transformer_2"].headers[0].path == pipeline / other.path

    def test_the_second_by_its_path(self, pipeline):
        for found in (
            detect(pipeline / "transformer_2"),
            detect(pipeline, "transformer_2/diffusion_pytorch_model.safetensors"),
        ):
            assert (found.kind, found.path.name) == ("denoiser", "transformer_2")
        assert load_denoiser(pipeline / "transformer_2").config.num_layers == 2

    def test_the_second_alone(self, pipeline):
        index = {"_class_name": "WanPipeline", "transformer": [None, None]}
        (pipeline / "model_index.json").write_text(
            json.dumps(index | {"transformer_2": ["diffusers", "WanTransformer3DModel"]})
        )
        assert detect(pipeline).path.name == "transformer_2"
        (pipeline / "model_index.json").unlink()
        assert detect(pipeline).path.name == "transformer"

    def test_one_that_is_missing(self, pipeline):
        (pipeline / "transformer_2" / "config.json").unlink()
        assert detect(pipeline).path.name == "transformer"
        with pytest.raises(SuspectError, match="transformer_2/config.json"):
            detect_denoisers(pipeline)

    def test_anything_else_has_one(self, folder):
        assert list(detect_denoisers(folder)) == [""] and list(detect_denoisers(folder.parent)) == [""]


class TestLinks:
    def test_a_link_that_the_user_passes_may_lead_anywhere(self, tmp_path, unet):
        snapshot = tmp_path / "hub" / "models--a--b" / "snapshots" / ("0" * 40) / "unet"
        unet.save_pretrained(snapshot)
        blobs = tmp_path / "hub" / "models--a--b" / "blobs"
        blobs.mkdir()
        weights = snapshot / "diffusion_pytorch_model.safetensors"
        weights.rename(blobs / "abc")
        weights.symlink_to(blobs / "abc")
        (tmp_path / "link").symlink_to(snapshot)
        (tmp_path / "above").symlink_to(snapshot.parent)
        for source in (tmp_path / "link", tmp_path / "above" / "unet", tmp_path / "above"):
            assert detect(source).kind == "denoiser"
            assert tensor_sha256(load_denoiser(source)) == tensor_sha256(unet)

    @pytest.mark.parametrize("index", [True, False])
    def test_one_within_a_folder_may_not(self, tmp_path, folder, index):
        (tmp_path / "suspect").mkdir()
        (tmp_path / "suspect" / "unet").symlink_to(folder)
        if index:
            (tmp_path / "suspect" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        with pytest.raises(UnsafeFileError, match="link out of its folder"):
            detect(tmp_path / "suspect")
        unet_within = tmp_path / "within" / "weights"
        unet_within.parent.mkdir()
        folder.rename(unet_within)
        (tmp_path / "within" / "unet").symlink_to(unet_within)
        assert detect(tmp_path / "within").kind == "denoiser"
