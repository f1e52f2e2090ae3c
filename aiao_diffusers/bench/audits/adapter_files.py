"""One mathematical change of a U-Net in every adapter layout that trainers write, and adapters of other kinds beside it."""

import copy
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ...formats.module_names import ldm_names
from .change import Change, Format, State, save


def _kohya_stem(module: str) -> str:
    return "lora_unet_" + module.replace(".", "_")


def write_kohya(change: Change, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """With an alpha of 4 a module, and a key of a text encoder."""
    state: State = {}
    for module, (down, up) in change.factors.items():
        stem, alpha = _kohya_stem(module), 4.0
        made = {"lora_down.weight": down, "lora_up.weight": up * len(down) / alpha, "alpha": torch.tensor(alpha)}
        state |= {f"{stem}.{role}": value.to(dtype) for role, value in made.items()}
    state["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(2, 2)
    return save(folder / "kohya.safetensors", state)


def _ldm(change: Change, folder: Path, kohya: bool) -> Path:
    names, state = ldm_names(dict(change.base.named_modules())), State()
    for module, (down, up) in change.factors.items():
        original = names[module]
        stem = "lora_unet_" + original.replace(".", "_") if kohya else f"diffusion_model.{original}"
        a, b = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
        state |= {f"{stem}.{a}.weight": down, f"{stem}.{b}.weight": up}
    return save(folder / "original_names.safetensors", state)


def _diffusers(change: Change, folder: Path) -> Path:
    state: State = {}
    for module, (down, up) in change.factors.items():
        state |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up * len(down) / 4}
    ranks = {module: len(down) for module, (down, _) in change.factors.items()}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4.0, "rank_pattern": ranks}
    text = json.dumps({f"unet.{key}": value for key, value in config.items()})
    return save(folder / "pytorch_lora_weights.safetensors", state, {"lora_adapter_metadata": text})


def _diffusers_old(change: Change, folder: Path) -> Path:
    state: State = {}
    for module, (down, up) in change.factors.items():
        head, _, tail = module.rpartition(".to_")
        if not head:
            continue  # this layout knows attention alone
        stem = f"unet.{head}.processor.to_{tail.removesuffix('.0')}_lora"
        state |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return save(folder / "pytorch_lora_weights.safetensors", state)


def write_peft(change: Change, folder: Path, **options: Any) -> Path:
    """As `PeftModel.save_pretrained`; `options` are fields of its config."""
    state: State = {}
    for module, (down, up) in change.factors.items():
        factor = 4.0 / (len(down) ** 0.5 if options.get("use_rslora") else len(down))
        stem = f"base_model.model.{module}"
        state |= {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up / factor}
        if options.get("use_dora"):
            merged = change.weight(module) + change.delta(module)
            size = merged.flatten(1).norm(dim=1)
            kernel = [1] * (merged.dim() - 2)  # of convolutions peft keeps the dimensions
            state[f"{stem}.lora_magnitude_vector"] = size.reshape(1, -1, *kernel) if kernel else size
    ranks = {module: len(down) for module, (down, _) in change.factors.items()}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4.0, "rank_pattern": ranks, **options}
    config["target_modules"] = list(change.factors)
    save(folder / "adapter_model.safetensors", state)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _kohya_dora(change: Change, folder: Path, dotted: bool = False) -> Path:
    """`dotted`: as diffusers' converter to kohya's names leaves the role that it does not know."""
    state: State = {}
    for module, (down, up) in change.factors.items():
        merged = change.weight(module) + change.delta(module)
        magnitude = merged.flatten(1).norm(dim=1).reshape(-1, *[1] * (merged.dim() - 1))
        stem = _kohya_stem(module)
        state |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        head, _, tail = module.rpartition(".")
        state[f"{_kohya_stem(head)}.{tail}.dora_scale" if dotted and head else f"{stem}.dora_scale"] = magnitude
    return save(folder / "dora.safetensors", state)


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
        elif algorithm == "glora":
            through = torch.ones(inner, len(b)), torch.zeros(len(b), inner)
            made = {"a1.weight": through[0], "a2.weight": through[1], "b1.weight": up, "b2.weight": down}
        elif algorithm == "full":
            made = {"diff": change.delta(module)}
        elif kernel:  # LoCon in its CP form: the kernel between two 1x1 convolutions
            made = {"lora_down.weight": torch.eye(inner).reshape(inner, inner, 1, 1), "lora_mid.weight": down}
            made |= {"lora_up.weight": up}
        else:
            made = {"lora_down.weight": down, "lora_up.weight": up}
        state |= {f"{_kohya_stem(module)}.{role}": value for role, value in made.items()}
    return save(folder / "lycoris.safetensors", state)


def _several(change: Change, folder: Path) -> Path:
    write_kohya(change, folder / "first")
    return save(folder / "second" / "other.safetensors", {"unet.x.lora_A.weight": torch.ones(1, 1)}).parents[1]


def _pivotal(change: Change, folder: Path) -> Path:
    save(folder / "embeddings.safetensors", {"clip_l": torch.ones(2, 8)})
    return write_kohya(change, folder).parent


def _peft_parts(change: Change, folder: Path) -> Path:
    write_peft(change, folder / "unet")
    return folder


def _with_biases(change: Change, folder: Path) -> Path:
    """As ComfyUI's extractor writes it by default; the change has no share in the biases."""
    state = load_file(write_kohya(change, folder))
    for module in change.factors:
        bias = change.base.get_submodule(module).bias
        if isinstance(bias, torch.Tensor):
            state[f"{_kohya_stem(module)}.diff_b"] = torch.zeros_like(bias)
    return save(folder / "kohya.safetensors", state)


def _wrapped(change: Change, folder: Path) -> Path:
    state = load_file(_diffusers_plain(change, folder))
    return save(folder / "wrapped.safetensors", {f"module._orig_mod.{key}": value for key, value in state.items()})


def _diffusers_plain(change: Change, folder: Path) -> Path:
    state: State = {}
    for module, (down, up) in change.factors.items():
        state |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}
    return save(folder / "wrapped.safetensors", state)


def _with_text_encoders(change: Change, folder: Path) -> Path:
    state = load_file(write_kohya(change, folder))
    for encoder in ("clip_l", "clip_g", "t5xxl"):
        for layer in range(len(change.factors)):
            stem = f"text_encoders.{encoder}.transformer.text_model.encoder.layers.{layer}.mlp.fc1"
            state |= {f"{stem}.lora_up.weight": torch.ones(2, 2), f"{stem}.lora_down.weight": torch.ones(2, 2)}
    return save(folder / "kohya.safetensors", state)


def _by_patterns(change: Change, folder: Path) -> Path:
    write_peft(change, folder)
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text())
    config["rank_pattern"] = {f"({re.escape(name)}|nothing[0-9]+)": r for name, r in config["rank_pattern"].items()}
    file.write_text(json.dumps(config))
    return folder


def _train_by_peft(change: Change, kind: str) -> Any:
    """The change's attention under a random adapter of another kind, held by peft."""
    import peft
    from peft.tuners.glora import GloraConfig

    configs: dict[str, tuple[Any, dict[str, Any]]] = {
        "OFT": (peft.OFTConfig, {"oft_block_size": 4}),
        "BOFT": (peft.BOFTConfig, {"boft_block_size": 4}),
        "GLORA": (GloraConfig, {"r": 2}),
        "VERA": (peft.VeraConfig, {"r": 4}),
    }
    make, options = configs[kind]
    names = [module for module in change.factors if ".to_" in module]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # BOFT's kernel for a GPU is not built here
        torch.manual_seed(0)
        held = peft.get_peft_model(copy.deepcopy(change.base), make(target_modules=names, **options))
    generator = torch.Generator().manual_seed(0)
    for parameter in held.parameters():
        if parameter.requires_grad:
            size = 0.02 if kind in ("OFT", "BOFT") else 0.05
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * size
    return held.eval()


def _load_by_peft(change: Change, folder: Path) -> Any:
    """What peft itself makes of a saved adapter."""
    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(change.base), folder).merge_and_unload().eval()


def _of_peft(kind: str) -> Callable[[Change, Path], Path]:
    def write(change: Change, folder: Path) -> Path:
        _train_by_peft(change, kind).save_pretrained(folder)
        return folder

    return write


def _merge_of_peft(kind: str) -> Callable[[Change], State]:
    def merge(change: Change) -> State:
        state: State = _train_by_peft(change, kind).merge_and_unload().state_dict()
        return state

    return merge


BY_PEFT: dict[str, Any] = {"stock": _load_by_peft, "oracle": "peft"}
ADAPTERS = (
    Format("diffusers, with its config in the header", _diffusers),
    Format("diffusers, old attention processors", _diffusers_old, attention_only=True),
    Format("native peft folder", write_peft, **BY_PEFT),
    Format("native peft, rank-stabilised", lambda c, f: write_peft(c, f, use_rslora=True), **BY_PEFT),
    Format("native peft, DoRA", lambda c, f: write_peft(c, f, use_dora=True), **BY_PEFT),
    Format("native peft, one folder a part", _peft_parts),
    Format("kohya, alpha and text encoder", write_kohya),
    Format("kohya, original LDM names", lambda c, f: _ldm(c, f, True)),
    Format("ComfyUI, original LDM names", lambda c, f: _ldm(c, f, False)),
    Format("kohya DoRA (`dora_scale`)", _kohya_dora),
    Format("LyCORIS LoCon, CP form", lambda c, f: _lycoris(c, f, "locon")),
    Format("LyCORIS LoHa", lambda c, f: _lycoris(c, f, "loha")),
    Format("LyCORIS LoKr", lambda c, f: _lycoris(c, f, "lokr")),
    Format("LyCORIS LoKr, full factors", lambda c, f: _lycoris(c, f, "lokr, full")),
    Format("LyCORIS full difference", lambda c, f: _lycoris(c, f, "full")),
    Format("kohya in float16", lambda c, f: write_kohya(c, f, torch.float16), rounding=1e-3),
    Format("kohya in bfloat16", lambda c, f: write_kohya(c, f, torch.bfloat16), rounding=5e-3),
    Format("kohya in float8 (e4m3)", lambda c, f: write_kohya(c, f, torch.float8_e4m3fn), rounding=0.05),
    Format("kohya, differences of biases beside (`diff_b`)", _with_biases),
    Format("kohya DoRA, names half dotted", lambda c, f: _kohya_dora(c, f, dotted=True)),
    Format("names of a compiled, wrapped pipeline", _wrapped),
    Format("many text-encoder keys in ComfyUI's names", _with_text_encoders),
    Format("native peft, ranks by regular expressions", _by_patterns, **BY_PEFT),
    Format("LyCORIS GLoRA", lambda c, f: _lycoris(c, f, "glora")),
    Format("native peft, OFT", _of_peft("OFT"), merge=_merge_of_peft("OFT"), attention_only=True, **BY_PEFT),
    Format("native peft, BOFT", _of_peft("BOFT"), merge=_merge_of_peft("BOFT"), attention_only=True, **BY_PEFT),
    Format("native peft, GLoRA", _of_peft("GLORA"), merge=_merge_of_peft("GLORA"), attention_only=True, **BY_PEFT),
    Format("native peft, VeRA", _of_peft("VERA"), merge=_merge_of_peft("VERA"), attention_only=True, **BY_PEFT),
    Format("repository of several adapters", _several, weight_name="first/kohya.safetensors"),
    Format("adapter beside a textual inversion", _pivotal),
)
"""All of them the same change, conv layers and ranks that vary by module included; of `merge` another, of the same modules."""
