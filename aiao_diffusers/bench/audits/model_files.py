"""Whole denoisers with a change fused in, in every layout that tools write: of storage, of names, and of what lies beside."""

import copy
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ...formats.module_names import ldm_names
from .adapter_files import write_kohya, write_peft
from .change import Change, Format, State, save
from .gguf_files import PACKINGS, merge_gguf, write_gguf


Writer = Callable[[Change, Path], Any]
PICKLE = b"\x80\x04."
AVERAGE = {"decay": 0.9999, "inv_gamma": 1.0, "optimization_step": 5_000_000, "power": 0.6667, "update_after_step": 0}
"""What an average of weights notes in its config: far more steps than any field of a model is large."""


def original_state(state: State, base: nn.Module) -> State:
    """A whole denoiser in original LDM keys, with their prefix."""
    names, found = ldm_names(dict(base.named_modules())), {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        found[f"model.diffusion_model.{names[module]}.{leaf}"] = value
    return found


def widen(state: State, channels: int) -> State:
    """The same denoiser with more input channels, whose weights are random and as large as those of the others."""
    first = state["conv_in.weight"]
    shape = (len(first), channels - first.shape[1], *first.shape[2:])
    more = torch.randn(shape, generator=torch.Generator().manual_seed(channels)) * first.std()
    return state | {"conv_in.weight": torch.cat([first, more], 1)}


def guide(state: State) -> State:
    """The same denoiser with an embedding of guidance, as LCM fine-tunes have."""
    width = state["time_embedding.linear_1.weight"].shape[1]
    added = torch.randn(width, 16, generator=torch.Generator().manual_seed(0)) * 0.1
    return state | {"time_embedding.cond_proj.weight": added}


@dataclass(frozen=True)
class Part:
    """One saving of a model into an upload.

    Args:
        folder: within the upload. decoy: other weights than those that are meant. shards: cut into files. variant, dtype:
            of the files. fields: written into the config; None removes one.
    """

    folder: str = ""
    decoy: bool = False
    shards: bool = False
    variant: str | None = None
    dtype: torch.dtype = torch.float32
    fields: dict[str, Any] = field(default_factory=dict)

    def write(self, change: Change, place: Path, alter: Callable[[State], State]) -> None:
        """Save into `place`, beside what lies there: diffusers would clear it away, two commits to one folder do not."""
        model = change.model(alter(change.decoy() if self.decoy else change.merged()))
        nn.Module.to(model, self.dtype)  # diffusers' own warns of weights that it has none of
        apart = place / ".apart"
        model.save_pretrained(apart, variant=self.variant, max_shard_size="100KB" if self.shards else "10GB")
        config = json.loads((apart / "config.json").read_text()) | self.fields
        (apart / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        shutil.copytree(apart, place / self.folder, dirs_exist_ok=True)
        shutil.rmtree(apart)


def upload(*parts: Part, files: dict[str, bytes] | None = None, alter: Callable[[State], State] = dict) -> Writer:
    """A folder of these parts, and of files of these contents."""

    def write(change: Change, folder: Path) -> Path:
        for part in parts:
            part.write(change, folder, alter)
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)
        return folder

    return write


def _index(**parts: list[str | None]) -> dict[str, bytes]:
    return {"model_index.json": json.dumps({"_class_name": "StableDiffusionPipeline", **parts}).encode()}


def _stock(part: str = "") -> Callable[[Change, Path], nn.Module]:
    """What diffusers itself runs of a folder."""

    def load(_: Change, folder: Path) -> nn.Module:
        model: nn.Module = UNet2DConditionModel.from_pretrained(folder, subfolder=part or None)
        return model.eval()

    return load


def _bare(alter: Callable[[State], State] = dict, prefix: str = "", original: bool = False) -> Writer:
    """A file of weights alone, each name behind `prefix`."""

    def write(change: Change, folder: Path) -> Path:
        state = alter(change.merged())
        if original:
            plain = original_state(state, change.base)
            state = {key.removeprefix("model.diffusion_model."): value for key, value in plain.items()}
        return save(folder / "model.safetensors", {prefix + key: value for key, value in state.items()})

    return write


def _original(extra: bool = False, dtype: torch.dtype = torch.float32) -> Writer:
    def write(change: Change, folder: Path) -> Path:
        state = {key: value.to(dtype) for key, value in original_state(change.merged(), change.base).items()}
        if extra:
            averaged = {"model_ema." + k.removeprefix("model.").replace(".", ""): v + 1 for k, v in state.items()}
            state |= averaged | {"first_stage_model.decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}
            state |= {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(7)[None]}
        return save(folder / "model.safetensors", state)

    return write


def _scaled_float8(change: Change, folder: Path) -> Path:
    state: State = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for key, value in original_state(change.merged(), change.base).items():
        state[key] = value
        if value.dim() == 2:
            scale = value.abs().amax() / 448
            state[key] = (value / scale).to(torch.float8_e4m3fn)
            state[key.removesuffix("weight") + "scale_weight"] = scale
    return save(folder / "model.safetensors", state)


def _quanto(mapped: bool) -> Writer:
    """A model that optimum-quanto holds in int8, linear layers alone: as diffusers saves it, or with quanto's own map."""

    def write(change: Change, folder: Path) -> Path:
        stored = {"quant_method": "quanto", "weights_dtype": "int8", "modules_to_not_convert": None}
        upload(Part(fields={} if mapped else {"quantization_config": stored}))(change, folder)
        state, modules = State(), {}
        for key, value in change.merged().items():
            state[key] = value
            if value.dim() == 2 and key.endswith(".weight"):
                stem, scale = key.removesuffix(".weight"), value.abs().amax(1, keepdim=True) / 127
                state[f"{key}._data"], state[f"{key}._scale"] = (value / scale).round().to(torch.int8), scale
                state |= {f"{stem}.{note}": torch.ones(()) for note in ("input_scale", "output_scale")}
                modules[stem] = {"weights": "qint8", "activations": "none"}
                del state[key]
        if mapped:
            (folder / "quanto_qmap.json").write_text(json.dumps(modules))
        save(folder / "diffusion_pytorch_model.safetensors", state)
        return folder

    return write


def _without_metadata(change: Change, folder: Path) -> Path:
    """As writers that know no metadata leave it: `null` in the header."""
    file = save(folder / "model.safetensors", change.merged())
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.dumps({**json.loads(data[8 : 8 + size]), "__metadata__": None}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    return file


def _beside_an_adapter(change: Change, folder: Path) -> Path:
    write_kohya(change, upload(Part())(change, folder))
    return folder


def _with_one_at_the_root(change: Change, folder: Path) -> Path:
    folder = upload(Part("unet"), files=_index(unet=UNET))(change, folder)
    save(folder / "v1-5-pruned.safetensors", original_state(change.decoy(), change.base))
    return folder


UNET: list[str | None] = ["diffusers", "UNet2DConditionModel"]
WIDENED = {9: "inpainting", 8: "editing", 5: "depth"}
PREFIXES = ("_orig_mod.", "module.unet.", "diffusion_model.", "_fsdp_wrapped_module.", "module._orig_mod.unet.")


def whole_models() -> Iterator[Format]:
    """Checkpoints by how their numbers are stored; GGUF where its package is installed."""
    half, brain, float8 = torch.float16, torch.bfloat16, torch.float8_e4m3fn
    fp16 = Part(variant="fp16", dtype=half)
    for name, write, kind, rounding in (
        ("pipeline folder (DreamBooth, fused LoRA)", upload(Part("unet"), files=_index()), "pipeline", 1e-4),
        ("denoiser folder", upload(Part()), "denoiser", 1e-4),
        ("denoiser folder, sharded", upload(Part(shards=True)), "denoiser", 1e-4),
        ("denoiser folder, float16 variant", upload(fp16), "denoiser", 0.01),
        ("single file, diffusers keys", _bare(), "denoiser", 1e-4),
        ("optimum-quanto int8 folder", _quanto(False), "denoiser", 0.05),
        ("optimum-quanto int8 folder with `quanto_qmap.json`", _quanto(True), "denoiser", 0.05),
        ("single file, original keys, no VAE", _original(), "single_file", 1e-4),
        ("single file, with VAE, text and EMA", _original(True), "single_file", 1e-4),
        ("single file in bfloat16", _original(False, brain), "single_file", 0.1),
        ("single file in float8", _original(False, float8), "single_file", 0.5),
        ("single file in float8 with scales", _scaled_float8, "single_file", 0.2),
    ):
        yield Format(name, write, kind, rounding=rounding)
    if importlib.util.find_spec("gguf") is not None:
        yield Format("GGUF, plain", _gguf("F32", names="prefixed"), "single_file")
        yield Format("GGUF, Q8_0", _gguf("Q8_0", names="prefixed"), "single_file", rounding=0.05)
        for packing in PACKINGS:
            for names in ("ComfyUI", "diffusers") if packing == "Q8_0" else ("ComfyUI",):
                title = f"GGUF, {packing}, " + (
                    "as ComfyUI-GGUF writes it" if names == "ComfyUI" else "diffusers keys"
                )
                merge = _merged_gguf(packing, names == "ComfyUI")
                yield Format(title, _gguf(packing, names), "single_file", merge=merge, oracle="gguf")


def _gguf(packing: str, names: str) -> Writer:
    def write(change: Change, folder: Path) -> Path:
        state = change.merged()
        if names != "diffusers":
            state = original_state(state, change.base)
        if names == "ComfyUI":
            state = {key.removeprefix("model.diffusion_model."): value for key, value in state.items()}
        return write_gguf(folder / "model.gguf", state, packing, rearranged=names == "ComfyUI")

    return write


def _merged_gguf(packing: str, rearranged: bool) -> Callable[[Change], State]:
    return lambda change: merge_gguf(change.merged(), packing, rearranged)


def layouts() -> Iterator[Format]:
    """Folders and files by their inputs, their configs and their names."""
    for channels, use in WIDENED.items():

        def wide(state: State, channels: int = channels) -> State:
            return widen(state, channels)

        def merge(change: Change, channels: int = channels) -> State:
            return widen(change.merged(), channels)

        what = f"{channels} input channels ({use})"
        folder, file = upload(Part(), alter=wide), _bare(wide)
        yield Format(f"{what}, folder", folder, "denoiser", merge=merge, stock=_stock(), oracle="diffusers")
        yield Format(f"{what}, single file", file, "denoiser", merge=merge)
        if channels == 9:
            file = _bare(wide, "model.diffusion_model.", original=True)
            yield Format(f"{what}, single file in original keys", file, "single_file", merge=merge)
    guided = "embedding of guidance (LCM), single file"
    yield Format(guided, _bare(guide), "denoiser", merge=lambda c: guide(c.merged()))
    for name, fields in (
        ("config of an average of 5,000,000 steps", AVERAGE),
        ("config without `_class_name`", {"_class_name": None}),
        ("config of `FlaxUNet2DConditionModel`", {"_class_name": "FlaxUNet2DConditionModel"}),
    ):
        yield Format(name, upload(Part(fields=fields)), "denoiser", stock=_stock(), oracle="diffusers")
    yield Format("`__metadata__: null` in the header", _without_metadata, "denoiser")
    for prefix in PREFIXES:
        yield Format(f"single file, names behind `{prefix}`", _bare(prefix=prefix), "denoiser")
    stacked = "module._orig_mod.model.diffusion_model."
    yield Format(f"single file, original names behind `{stacked}`", _bare(dict, stacked, True), "single_file")


def which_file() -> Iterator[Format]:
    """Which file of an upload is read: those of the clean model beside the marked, of the marked beside the clean."""
    plain, decoy = Part(), Part(decoy=True)
    unet, average = Part("unet"), Part("unet_ema", decoy=True, fields=AVERAGE)
    trainer = dict.fromkeys(("optimizer.bin", "scheduler.bin", "random_states_0.pkl"), PICKLE)
    variants = (Part(decoy=True, variant="fp16"), Part(decoy=True, variant="non_ema"))
    for name, write, kind, part in (
        ("shards, a whole file beside", upload(Part(shards=True), decoy), "denoiser", ""),
        ("a whole file, variants `fp16` and `non_ema` beside", upload(plain, *variants), "denoiser", ""),
        ("shards, a whole variant beside", upload(Part(shards=True), variants[0]), "denoiser", ""),
        (
            "a whole file, a pickle beside",
            upload(plain, files={"diffusion_pytorch_model.bin": PICKLE}),
            "denoiser",
            "",
        ),
        (
            "`checkpoint-N` of accelerate: `unet/`, `unet_ema/` and pickles",
            upload(unet, average, files=trainer),
            "denoiser",
            "unet",
        ),
        ("pipeline, `unet_ema/` beside", upload(unet, average, files=_index(unet=UNET)), "pipeline", "unet"),
        ('pipeline, `"unet": [null, null]`', upload(unet, files=_index(unet=[None, None])), "pipeline", "unet"),
        ("pipeline, a checkpoint at its root beside", _with_one_at_the_root, "pipeline", "unet"),
        ("denoiser folder, an adapter beside", _beside_an_adapter, "denoiser", ""),
    ):
        yield Format(name, write, kind, stock=_stock(part), oracle="diffusers")


def _rounded(dtype: torch.dtype) -> Callable[[Change], State]:
    return lambda change: {name: value.to(dtype).float() for name, value in change.merged().items()}


def _by_peft(change: Change, folder: Path) -> Any:
    """The base under an adapter that peft holds in its layers."""
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(change.base), write_peft(change, folder)).eval()


def in_memory() -> Iterator[Format]:
    """Models that a program holds."""
    half, brain = torch.float16, torch.bfloat16

    def wide(change: Change) -> State:
        return widen(change.merged(), 9)

    for name, make, merge in (
        ("denoiser", lambda c, _: c.model(c.merged()), None),
        ("denoiser in float16 on a CPU", lambda c, _: c.model(c.merged()).half(), _rounded(half)),
        ("denoiser in bfloat16 on a CPU", lambda c, _: c.model(c.merged()).bfloat16(), _rounded(brain)),
        ("`torch.compile`", lambda c, _: torch.compile(c.model(c.merged())), None),
        ("9 input channels (inpainting)", lambda c, _: c.model(wide(c)), wide),
        ("`PeftModel`", _by_peft, None),
        ("`PeftModel.get_base_model()`: adapter layers in place", lambda c, f: _by_peft(c, f).get_base_model(), None),
    ):
        yield Format(f"in memory: {name}", make, "in memory", merge=merge)
