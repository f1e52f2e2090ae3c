"""Which file is judged: for each row of the table in docs/formats.md, the one that diffusers' own loader runs."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from _tiny import BOTH_LEVELS, factors, tiny_unet, write
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    UNet2DConditionModel,
)
from safetensors.torch import save_file

from aiao_diffusers.denoiser.hashes import tensor_sha256
from aiao_diffusers.errors import SeveralSuspectsError, UnsafeFileError
from aiao_diffusers.formats.bystanders import list_bystanders
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.detect import detect


STEM = "diffusion_pytorch_model"
RAN, OTHER = tiny_unet(seed=1), tiny_unet(seed=2)
"""What the stock loader runs in every case, and what lies beside it."""


@dataclass(frozen=True)
class Case:
    """A folder with two sets of weights: how it is built, how diffusers loads it, what our report must name."""

    build: Callable[[Path], None]
    load: Callable[[Path], torch.nn.Module]
    named: tuple[str, ...]


def save(model: UNet2DConditionModel, folder: Path, shards: bool = False, variant: str | None = None) -> None:
    model.save_pretrained(folder, variant=variant, max_shard_size="60KB" if shards else "10GB")


def both(*saves: tuple[UNet2DConditionModel, str, bool, str | None]) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        # diffusers clears old shards of a name before it writes: each is saved apart, as uploads in two commits are.
        for number, (model, part, shards, variant) in enumerate(saves):
            save(model, root / f".{number}", shards, variant)
            shutil.copytree(root / f".{number}", root / part, dirs_exist_ok=True)
            shutil.rmtree(root / f".{number}")

    return build


def pipeline(parts: dict[str, list[str | None]], *saves: tuple[UNet2DConditionModel, str, bool, str | None]):
    def build(root: Path) -> None:
        both(*saves)(root)
        DDPMScheduler().save_pretrained(root / "scheduler")
        scheduler = {"scheduler": ["diffusers", "DDPMScheduler"]}
        (root / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline", **scheduler, **parts}))

    return build


def from_folder(root: Path) -> torch.nn.Module:
    return UNet2DConditionModel.from_pretrained(root)


def from_unet(root: Path) -> torch.nn.Module:
    return UNet2DConditionModel.from_pretrained(root / "unet")


def from_pipeline(root: Path) -> torch.nn.Module:
    return DDPMPipeline.from_pretrained(root).unet


def beside_an_adapter(root: Path) -> None:
    save(RAN, root)
    write(root, "kohya", factors(RAN, BOTH_LEVELS, 2), 1.0)


def original_beside(root: Path) -> None:
    pipeline(NAMED, (RAN, "unet", False, None))(root)
    state = {f"model.diffusion_model.{k}": v.contiguous() for k, v in OTHER.state_dict().items()}
    save_file(state, root / "v1-5-pruned.safetensors")
    (root / "v1-5-pruned.ckpt").write_bytes(b"PK")
    (root / "q8.gguf").write_bytes(b"GGUF")


def beside_pickles(root: Path) -> None:
    both((RAN, "unet", False, None), (OTHER, "unet_ema", False, None))(root)
    for name in ("optimizer.bin", "random_states_0.pkl", "scheduler.bin", "unet/diffusion_pytorch_model.bin"):
        (root / name).write_bytes(b"\x80\x04")


def at_the_root_of_a_pipeline(root: Path) -> None:
    pipeline(NAMED, (RAN, "unet", False, None))(root)
    save_file({k: v.contiguous() for k, v in OTHER.state_dict().items()}, root / f"{STEM}.safetensors")


def from_the_root(root: Path) -> None:
    pipeline(NAMED, (RAN, "", False, None), (OTHER, "unet_ema", False, None))(root)


def switched(root: Path) -> None:
    pipeline({"unet": [None, None]}, (RAN, "unet", False, None), (OTHER, "transformer", False, None))(root)


NAMED: dict[str, list[str | None]] = {"unet": ["diffusers", "UNet2DConditionModel"]}
TRANSFORMER: dict[str, list[str | None]] = {"transformer": ["diffusers", "UNet2DConditionModel"], "unet": [None, None]}
UNET, EMA = f"unet/{STEM}.safetensors", f"unet_ema/{STEM}.safetensors"
CASES = {
    "whole beside shards": Case(
        both((OTHER, "", False, None), (RAN, "", True, None)), from_folder, (f"{STEM}.safetensors",)
    ),
    "whole beside shards in a pipeline": Case(
        pipeline(NAMED, (OTHER, "unet", False, None), (RAN, "unet", True, None)), from_pipeline, (UNET,)
    ),
    "whole beside shards of one variant": Case(
        both((OTHER, "", False, "fp16"), (RAN, "", True, "fp16")),
        lambda root: UNet2DConditionModel.from_pretrained(root, variant="fp16"),
        (f"{STEM}.fp16.safetensors",),
    ),
    "plain beside a variant": Case(
        both((RAN, "", False, None), (OTHER, "", False, "fp16")), from_folder, (f"{STEM}.fp16.safetensors",)
    ),
    "plain beside shards of a variant": Case(
        both((RAN, "", False, None), (OTHER, "", True, "non_ema")),
        from_folder,
        (f"{STEM}.safetensors.index.non_ema.json",),
    ),
    "plain shards beside a variant": Case(
        both((RAN, "", True, None), (OTHER, "", False, "non_ema")), from_folder, (f"{STEM}.non_ema.safetensors",)
    ),
    "checkpoint of a training script": Case(beside_pickles, from_unet, (EMA, f"unet/{STEM}.bin")),
    "unet_ema in a pipeline": Case(
        pipeline(NAMED, (RAN, "unet", False, None), (OTHER, "unet_ema", False, None)), from_pipeline, (EMA,)
    ),
    "weights at a pipeline's root": Case(at_the_root_of_a_pipeline, from_pipeline, (f"{STEM}.safetensors",)),
    "a pipeline whose denoiser lies at the root": Case(from_the_root, from_pipeline, (EMA,)),
    "original checkpoints beside a pipeline": Case(
        original_beside, from_pipeline, ("q8.gguf", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt")
    ),
    "transformer named, unet lies there": Case(
        pipeline(TRANSFORMER, (OTHER, "unet", False, None), (RAN, "transformer", False, None)),
        lambda root: UNet2DConditionModel.from_pretrained(root / "transformer"),
        (UNET,),
    ),
    "unet switched off": Case(switched, from_unet, (f"transformer/{STEM}.safetensors",)),
    "adapter beside a whole denoiser": Case(beside_an_adapter, from_folder, ("kohya.safetensors",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_judged_weights_are_those_that_diffusers_runs(tmp_path, name):
    case = CASES[name]
    case.build(tmp_path)
    ran = case.load(tmp_path)
    found = detect(tmp_path)
    assert tensor_sha256(load_denoiser(found)) == tensor_sha256(ran) == tensor_sha256(RAN)
    assert {item.path for item in found.also_present} == set(case.named)
    assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(RAN)
    if not name.startswith("unet switched"):
        assert found.warnings == ()
    # weight_name= takes what is named, and a folder's weights with their config
    for item in found.also_present:
        if item.kind == "denoiser" and "/" in item.path:
            assert tensor_sha256(load_denoiser(detect(tmp_path, item.path))) == tensor_sha256(OTHER)


def test_a_pipeline_that_names_a_transformer_runs_it_and_no_unet(tmp_path):
    torch.manual_seed(0)
    ran = DiTTransformer2DModel(2, 4, 4, num_layers=1, norm_num_groups=4, sample_size=8, num_embeds_ada_norm=10)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    DiTPipeline(ran, vae, DDIMScheduler()).save_pretrained(tmp_path)
    save(OTHER, tmp_path / "unet")
    stock = DiTPipeline.from_pretrained(tmp_path).transformer
    assert tensor_sha256(load_denoiser(tmp_path)) == tensor_sha256(stock) == tensor_sha256(ran)
    assert [item.path for item in detect(tmp_path).also_present] == [UNET]


def test_without_plain_weights_several_variants_need_a_name(tmp_path):
    both((RAN, "", False, "fp16"), (OTHER, "", False, "non_ema"))(tmp_path)
    with pytest.raises(OSError, match=STEM):
        from_folder(tmp_path)
    with pytest.raises(SeveralSuspectsError, match="weight_name=") as caught:
        detect(tmp_path)
    names = [f"{STEM}.fp16.safetensors", f"{STEM}.non_ema.safetensors"]
    assert [item.path for item in caught.value.also_present] == names
    for name, model in zip(names, (RAN, OTHER), strict=True):
        assert tensor_sha256(load_denoiser(detect(tmp_path, name))) == tensor_sha256(model)


def test_a_pickle_that_would_run_is_not_passed_over_for_a_variant(tmp_path):
    save(OTHER, tmp_path, variant="fp16")
    RAN.save_pretrained(tmp_path, safe_serialization=False)
    assert tensor_sha256(from_folder(tmp_path)) == tensor_sha256(RAN)
    with pytest.raises(UnsafeFileError, match=r"runs the pickle .*weight_name='diffusion_pytorch_model\.fp16"):
        detect(tmp_path)
    assert tensor_sha256(load_denoiser(detect(tmp_path, f"{STEM}.fp16.safetensors"))) == tensor_sha256(OTHER)


def test_a_vae_and_broken_files_are_no_bystanders(tmp_path):
    pipeline(NAMED, (RAN, "unet", False, None))(tmp_path)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "broken" / f"{STEM}.safetensors").write_bytes(b"junk")
    assert detect(tmp_path).also_present == ()


def test_a_thousand_files_cost_few_headers():
    asked = []

    def kind_of(name: str) -> str:
        asked.append(name)
        return "lora"

    names = [f"{number}.safetensors" for number in range(1000)] + ["pytorch_lora_weights.safetensors"]
    found = list(list_bystanders(names, (), lambda folder: False, kind_of))
    assert len(found) == len(asked) == 64 and found[0].path == "pytorch_lora_weights.safetensors"
