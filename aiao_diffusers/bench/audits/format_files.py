"""One mathematical change of a U-Net, written in every shape that people upload."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ...formats.module_names import ldm_names


Factors = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Module -> (down, up); the change of its weight is `up @ down`, convolutions with their kernel in `down`."""
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Change:
    """A denoiser and what is done to it.

    Args:
        base: the denoiser before; never changed here. factors: the change, in float32.
    """

    base: nn.Module
    factors: Factors

    def delta(self, module: str) -> torch.Tensor:
        """The change of a module's weight, in its shape."""
        down, up = self.factors[module]
        return (up.flatten(1) @ down.flatten(1)).reshape(self.weight(module).shape)

    def weight(self, module: str) -> torch.Tensor:
        """A module's weight before the change."""
        value = self.base.get_submodule(module).weight
        assert isinstance(value, torch.Tensor)
        return value.detach()

    def merged(self) -> State:
        """The whole state after the change."""
        state = {name: tensor.clone() for name, tensor in self.base.state_dict().items()}
        for module in self.factors:
            state[f"{module}.weight"] += self.delta(module).to(state[f"{module}.weight"].dtype)
        return state


@dataclass(frozen=True)
class Format:
    """A name for the table, a writer, and what the loader should make of it.

    Args:
        write: `(change, empty folder) -> what a user would pass`. kind: `Artifact.kind` expected, or an error's name.
        loads: whether it changes the denoiser. rounding: of its storage, as a share of the change's size.
        weight_name: the file meant, where the folder holds several. attention_only: it has no names for other modules.
    """

    name: str
    write: Callable[[Change, Path], Path]
    kind: str = "lora"
    loads: bool = True
    rounding: float = 1e-4
    weight_name: str | None = None
    attention_only: bool = False

    def modules(self, change: Change) -> tuple[str, ...]:
        """Those of the change's modules that this format can hold."""
        return tuple(m for m in change.factors if not self.attention_only or ".to_" in m)


def _save(path: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().clone() for k, v in state.items()}, path, metadata or {"format": "pt"})
    return path


def _kohya_stem(module: str) -> str:
    return "lora_unet_" + module.replace(".", "_")


def _kohya(change: Change, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    state: State = {}
    for module, (down, up) in change.factors.items():
        stem, alpha = _kohya_stem(module), 4.0
        made = {"lora_down.weight": down, "lora_up.weight": up * len(down) / alpha, "alpha": torch.tensor(alpha)}
        state |= {f"{stem}.{role}": value.to(dtype) for role, value in made.items()}
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(2, 2)
    return _save(folder / "kohya.safetensors", state)


def _ldm(change: Change, folder: Path, kohya: bool) -> Path:
    names, state = ldm_names(dict(change.base.named_modules())), State()
    for module, (down, up) in change.factors.items():
        original = names[module]
        stem = "lora_unet_" + original.replace(".", "_") if kohya else f"diffusion_model.{original}"
        a, b = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
        state |= {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up}
    return _save(folder / "original_names.safetensors", state)


def _diffusers(change: Change, folder: Path) -> Path:
    state: State = {}
    for module, (down, up) in change.factors.items():
        state |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up * len(down) / 4}
    ranks = {module: len(down) for module, (down, _) in change.factors.items()}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4.0, "rank_pattern": ranks}
    text = json.dumps({f"unet.{key}": value for key, value in config.items()})
    return _save(folder / "pytorch_lora_weights.safetensors", state, {"lora_adapter_metadata": text})


def _diffusers_old(change: Change, folder: Path) -> Path:
    state: State = {}
    for module, (down, up) in change.factors.items():
        head, _, tail = module.rpartition(".to_")
        if not head:
            continue  # this layout knows attention alone
        stem = f"unet.{head}.processor.to_{tail.removesuffix('.0')}_lora"
        state |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return _save(folder / "pytorch_lora_weights.safetensors", state)


def _peft(change: Change, folder: Path, **options: Any) -> Path:
    state: State = {}
    for module, (down, up) in change.factors.items():
        factor = 4.0 / (len(down) ** 0.5 if options.get("use_rslora") else len(down))
        stem = f"base_model.model.{module}"
        state |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up / factor}
        if options.get("use_dora"):
            merged = change.weight(module) + change.delta(module)
            state[f"{stem}.lora_magnitude_vector"] = merged.flatten(1).norm(dim=1)
    ranks = {module: len(down) for module, (down, _) in change.factors.items()}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4.0, "rank_pattern": ranks, **options}
    _save(folder / "adapter_model.safetensors", state)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _kohya_dora(change: Change, folder: Path) -> Path:
    state: State = {}
    for module, (down, up) in change.factors.items():
        merged = change.weight(module) + change.delta(module)
        magnitude = merged.flatten(1).norm(dim=1).reshape(-1, *[1] * (merged.dim() - 1))
        stem = _kohya_stem(module)
        state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, f"{stem}.dora_scale": magnitude}
    return _save(folder / "dora.safetensors", state)


def _lycoris(change: Change, folder: Path, algorithm: str) -> Path:
    """LyCORIS's algorithms in a form that equals plain low rank: a factor of ones, a Kronecker factor of 1."""
    state: State = {}
    for module, (down, up) in change.factors.items():
        kernel, inner = tuple(down.shape[2:]), down.shape[1]
        a, b = up.flatten(1), down.flatten(1)
        if algorithm == "loha":
            ones = torch.ones(len(a), 1), torch.ones(1, b.shape[1])
            made: State = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": ones[0], "hada_w2_b": ones[1]}
        elif algorithm == "lokr":
            made = {"lokr_w1": torch.ones(1, 1), "lokr_w2_a": a, "lokr_w2_b": b, "alpha": torch.tensor(float(len(b)))}
        elif algorithm == "lokr, full":
            made = {"lokr_w1": torch.ones(1, 1), "lokr_w2": change.delta(module), "alpha": torch.tensor(0.5)}
        elif algorithm == "full":
            made = {"diff": change.delta(module)}
        elif kernel:  # LoCon in its CP form: the kernel between two 1x1 convolutions
            made = {"lora_down.weight": torch.eye(inner).reshape(inner, inner, 1, 1), "lora_mid.weight": down}
            made |= {"lora_up.weight": up}
        else:
            made = {"lora_down.weight": down, "lora_up.weight": up}
        state |= {f"{_kohya_stem(module)}.{role}": value for role, value in made.items()}
    return _save(folder / "lycoris.safetensors", state)


def _several(change: Change, folder: Path) -> Path:
    _kohya(change, folder / "first")
    return _save(folder / "second" / "other.safetensors", {"unet.x.lora_A.weight": torch.ones(1, 1)}).parents[1]


def _pivotal(change: Change, folder: Path) -> Path:
    _save(folder / "embeddings.safetensors", {"clip_l": torch.ones(2, 8)})
    return _kohya(change, folder).parent


def _peft_parts(change: Change, folder: Path) -> Path:
    _peft(change, folder / "unet")
    return folder


ADAPTERS = (
    Format("diffusers, with its config in the header", _diffusers),
    Format("diffusers, old attention processors", _diffusers_old, attention_only=True),
    Format("native peft folder", _peft),
    Format("native peft, rank-stabilised", lambda c, f: _peft(c, f, use_rslora=True)),
    Format("native peft, DoRA", lambda c, f: _peft(c, f, use_dora=True)),
    Format("native peft, one folder a part", _peft_parts),
    Format("kohya, alpha and text encoder", _kohya),
    Format("kohya, original LDM names", lambda c, f: _ldm(c, f, True)),
    Format("ComfyUI, original LDM names", lambda c, f: _ldm(c, f, False)),
    Format("kohya DoRA (`dora_scale`)", _kohya_dora),
    Format("LyCORIS LoCon, CP form", lambda c, f: _lycoris(c, f, "locon")),
    Format("LyCORIS LoHa", lambda c, f: _lycoris(c, f, "loha")),
    Format("LyCORIS LoKr", lambda c, f: _lycoris(c, f, "lokr")),
    Format("LyCORIS LoKr, full factors", lambda c, f: _lycoris(c, f, "lokr, full")),
    Format("LyCORIS full difference", lambda c, f: _lycoris(c, f, "full")),
    Format("kohya in float16", lambda c, f: _kohya(c, f, torch.float16), rounding=1e-3),
    Format("kohya in bfloat16", lambda c, f: _kohya(c, f, torch.bfloat16), rounding=5e-3),
    Format("kohya in float8 (e4m3)", lambda c, f: _kohya(c, f, torch.float8_e4m3fn), rounding=0.05),
    Format("repository of several adapters", _several, weight_name="first/kohya.safetensors"),
    Format("adapter beside a textual inversion", _pivotal),
)
"""All of them the same change, conv layers and ranks that vary by module included."""


def _only(key: str, *shape: int) -> Callable[[Change, Path], Path]:
    return lambda _, folder: _save(folder / "x.safetensors", {key: torch.ones(shape)})


def _zero(change: Change, folder: Path) -> Path:
    return _kohya(Change(change.base, {m: (a, b * 0) for m, (a, b) in change.factors.items()}), folder)


def _pickle(_: Change, folder: Path) -> Path:
    (folder / "pytorch_lora_weights.bin").write_bytes(b"\x80\x04.")
    return folder


def _writer_of_quantised(method: str) -> Callable[[Change, Path], Path]:
    def write(change: Change, folder: Path) -> Path:
        folder = _folder(change, folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        return folder

    return write


def _tensors_of(layout: str) -> Callable[[Change, Path], Path]:
    suffixes = {"bitsandbytes": ".absmax", "integers": ""}

    def write(change: Change, folder: Path) -> Path:
        state = change.merged()
        first = next(key for key, value in state.items() if value.dim() >= 2)
        state[first + suffixes[layout]] = state[first].to(torch.int8)
        return _save(folder / "x.safetensors", state)

    return write


NO_FINE_TUNE = (
    Format("LoRA whose change is zero", _zero, loads=False),
    Format("textual inversion alone", _only("<toy>", 1, 128), "textual_inversion", False),
    Format(
        "text encoder's LoRA alone",
        _only("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight", 2, 2),
        "text_encoder_only",
        False,
    ),
    Format("IP-Adapter", _only("image_proj.proj.weight", 4, 4), "ip_adapter", False),
    Format("ControlNet", _only("control_model.time_embed.0.weight", 4, 4), "controlnet", False),
    Format("AnimateDiff motion module", _only("down_blocks.0.motion_modules.0.w", 4, 4), "motion_adapter", False),
    Format("FLUX LoRA", _only("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", 4, 3072), loads=False),
    Format("pickle (`.bin`)", _pickle, "UnsafeFileError", False),
    Format("bitsandbytes folder", _writer_of_quantised("bitsandbytes"), "denoiser", False),
    Format("torchao folder", _writer_of_quantised("torchao"), "denoiser", False),
    Format("optimum-quanto folder, width not stated", _writer_of_quantised("quanto"), "denoiser", False),
    Format("bitsandbytes tensors in one file", _tensors_of("bitsandbytes"), "denoiser", False),
    Format("integer tensors in one file", _tensors_of("integers"), "denoiser", False),
)
"""Nothing that a verdict could be about: `not_testable`, or a typed error."""


def _folder(change: Change, folder: Path, shard: str | None = None, dtype: torch.dtype | None = None) -> Path:
    base: Any = change.base  # ModelMixin's config methods are untyped
    model = type(base).from_config(base.config)
    model.load_state_dict(change.merged())
    options = {"max_shard_size": shard} if shard else {}
    if dtype is not None:
        options["variant"] = "fp16"
        model = model.to(dtype)
    model.save_pretrained(folder, **options)
    return folder


def _pipeline(change: Change, folder: Path) -> Path:
    _folder(change, folder / "unet")
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    return folder


def original_state(change: Change) -> State:
    """The whole denoiser after the change, in original LDM keys."""
    state, names = change.merged(), ldm_names(dict(change.base.named_modules()))
    found = {}
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        found[f"model.diffusion_model.{names[module]}.{leaf}"] = value
    return found


def _original(change: Change, folder: Path, extra: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    state = {key: value.to(dtype) for key, value in original_state(change).items()}
    if extra:
        averaged = {"model_ema." + k.removeprefix("model.").replace(".", ""): v + 1 for k, v in state.items()}
        state |= averaged | {"first_stage_model.decoder.conv_in.weight": torch.ones(8, 4, 3, 3)}
        state |= {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(7)[None]}
    return _save(folder / "model.safetensors", state)


def _scaled_float8(change: Change, folder: Path) -> Path:
    state: State = {"scaled_fp8": torch.zeros(0, dtype=torch.float8_e4m3fn)}
    for key, value in original_state(change).items():
        state[key] = value
        if value.dim() == 2:
            scale = value.abs().amax() / 448
            state[key] = (value / scale).to(torch.float8_e4m3fn)
            state[key.removesuffix("weight") + "scale_weight"] = scale
    return _save(folder / "model.safetensors", state)


def _quanto(change: Change, folder: Path) -> Path:
    """As diffusers saves a model that optimum-quanto holds in int8: linear layers alone."""
    folder = _folder(change, folder)
    state: State = {}
    for key, value in change.merged().items():
        state[key] = value
        if value.dim() == 2 and key.endswith(".weight"):
            scale = value.abs().amax(1, keepdim=True) / 127
            state[f"{key}._data"], state[f"{key}._scale"] = (value / scale).round().to(torch.int8), scale
            for note in ("input_scale", "output_scale"):
                state[f"{key.removesuffix('weight')}{note}"] = torch.ones(())
            del state[key]
    config = json.loads((folder / "config.json").read_text())
    stored = {"quant_method": "quanto", "weights_dtype": "int8", "modules_to_not_convert": None}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stored}))
    _save(folder / "diffusion_pytorch_model.safetensors", state)
    return folder


def _gguf(change: Change, folder: Path, quantised: bool) -> Path:
    import gguf

    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / "model.gguf", "sd")
    for key, tensor in original_state(change).items():
        value = tensor.numpy()
        if quantised and value.ndim == 2 and value.shape[1] % 32 == 0:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(key, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "model.gguf"


def whole_models() -> Iterator[Format]:
    """Checkpoints with the change fused in; GGUF where its package is installed."""
    yield Format("pipeline folder (DreamBooth, fused LoRA)", _pipeline, "pipeline")
    yield Format("denoiser folder", _folder, "denoiser")
    yield Format("denoiser folder, sharded", lambda c, f: _folder(c, f, "100KB"), "denoiser")
    half = torch.float16
    yield Format("denoiser folder, float16 variant", lambda c, f: _folder(c, f, None, half), "denoiser", rounding=0.01)
    yield Format("single file, diffusers keys", lambda c, f: _save(f / "model.safetensors", c.merged()), "denoiser")
    yield Format("optimum-quanto int8 folder", _quanto, "denoiser", rounding=0.05)
    yield Format("single file, original keys, no VAE", _original, "single_file")
    yield Format("single file, with VAE, text and EMA", lambda c, f: _original(c, f, True), "single_file")
    brain, float8 = torch.bfloat16, torch.float8_e4m3fn
    yield Format("single file in bfloat16", lambda c, f: _original(c, f, False, brain), "single_file", rounding=0.1)
    yield Format("single file in float8", lambda c, f: _original(c, f, False, float8), "single_file", rounding=0.5)
    yield Format("single file in float8 with scales", _scaled_float8, "single_file", rounding=0.2)
    if importlib.util.find_spec("gguf") is not None:
        yield Format("GGUF, plain", lambda c, f: _gguf(c, f, False), "single_file")
        yield Format("GGUF, Q8_0", lambda c, f: _gguf(c, f, True), "single_file", rounding=0.05)
