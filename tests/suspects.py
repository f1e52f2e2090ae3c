"""Repositories around the shipped marked model, each with the verdict that a scan must reach: for tests and measurement.

LoRAs are the shipped one rescaled and perturbed, fine-tunes are the shipped weights perturbed; no training takes place.
"""

import json
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from tests._shipped import ASSETS
from tests.hub_server import Hollow, HubServer
from tests.samples import card, safetensors


LORA = "pytorch_lora_weights.safetensors"
UNET = "unet/diffusion_pytorch_model.safetensors"
BASE = "acme/sd"
State = dict[str, torch.Tensor]


def folder(name: str, *parts: str) -> dict[str, Path]:
    """Files of a shipped model, by path in the repository; only those that start with one of `parts`, if given."""
    root = ASSETS / name
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    return {path: file for path, file in files.items() if not parts or path.startswith(parts)}


@dataclass(frozen=True)
class Suspect:
    """A repository and what a scan must say of it: the verdict, and a part of the reason when it is not testable."""

    repo: str
    files: dict[str, Any]
    verdict: str
    reason: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    named: bool = False  # outside the tree: the scan must be told of it


def noisy(state: State, seed: int, share: float, dtype: torch.dtype | None = None) -> State:
    """Every tensor plus Gaussian noise of `share` of its own standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, value in state.items():
        value, wanted = value.float(), dtype or value.dtype
        spread = value.std() if value.numel() > 1 else value.abs().max()
        result[name] = (value + share * spread * torch.randn(value.shape, generator=generator)).to(wanted)
    return result


def blend(a: State, b: State, weight: float) -> State:
    return {name: (weight * a[name].float() + (1 - weight) * b[name].float()).half() for name in a}


def lora(seed: int, scale: float = 1.0) -> State:
    """The shipped LoRA, rescaled and perturbed by a tenth."""
    state = noisy(load_file(ASSETS / "lora" / LORA), seed, 0.1)
    return {name: value * (scale if ".lora_B." in name else 1.0) for name, value in state.items()}


def kohya(state: State) -> State:
    result = {}
    for name, value in state.items():
        stem, _, which = name.removeprefix("unet.").partition(".lora_")
        stem = "lora_unet_" + stem.replace(".", "_")
        result[f"{stem}.lora_{'down' if which.startswith('A') else 'up'}.weight"] = value
        result[f"{stem}.alpha"] = torch.tensor(float(value.shape[0] if which.startswith("A") else value.shape[1]))
    return result


def peft(state: State) -> dict[str, bytes]:
    rank = next(value.shape[0] for name, value in state.items() if ".lora_A." in name)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "base_model_name_or_path": BASE}
    renamed = {f"base_model.model.{name.removeprefix('unet.')}": value for name, value in state.items()}
    return {"adapter_model.safetensors": save(renamed), "adapter_config.json": json.dumps(config).encode()}


def sharded(state: State, parts: int = 3) -> dict[str, bytes]:
    names, files, table = sorted(state), {}, {}
    for i in range(parts):
        file = f"diffusion_pytorch_model-{i + 1:05d}-of-{parts:05d}.safetensors"
        files[f"unet/{file}"] = save({name: state[name] for name in names[i::parts]})
        table |= dict.fromkeys(names[i::parts], file)
    index = {"metadata": {}, "weight_map": table}
    return {**files, "unet/diffusion_pytorch_model.safetensors.index.json": json.dumps(index).encode()}


def huge() -> Hollow:
    """A valid header of one adapter tensor of 100 GB."""
    size = 10**11
    raw = json.dumps(
        {"unet.conv_in.lora_A.weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    ).encode()
    return Hollow(8 + len(raw) + size, struct.pack("<Q", len(raw)) + raw)


def population(rounds: int = 1) -> Iterator[Suspect]:
    """About 40 repositories a round, every kind in each; weights differ from round to round."""
    marked, base = load_file(ASSETS / "marked" / UNET), load_file(ASSETS / "base" / UNET)
    tuned = load_file(ASSETS / "finetuned" / UNET)
    config = {"unet/config.json": ASSETS / "marked" / "unet" / "config.json"}
    child = {"README.md": card(base_model=BASE)}
    seeds = count(1)
    for n in range(rounds):

        def make(name: str, files: dict[str, Any], verdict: str, reason: str = "", n: int = n, **more: Any) -> Suspect:
            return Suspect(
                f"user{n}/{name}", files if more.get("named") else {**child, **files}, verdict, reason, **more
            )

        def unet(state: State) -> dict[str, Any]:
            return {**config, UNET: save(state)}

        yes, no, none = "verified", "not_verified", "not_testable"
        # LoRAs
        for i, scale in enumerate((0.3, 0.7, 1.0)):
            yield make(f"lora-{i}", {LORA: save(lora(next(seeds), scale))}, yes)
        yield make("lora-kohya", {"style.safetensors": save(kohya(lora(next(seeds))))}, yes)
        yield make("lora-peft", peft(lora(next(seeds))), yes)
        yield make("lora-half", {LORA: save({k: v.half() for k, v in lora(next(seeds)).items()})}, yes)
        yield make("lora-copy", {LORA: ASSETS / "lora" / LORA}, yes)
        # full checkpoints that descend from the marked model
        yield make("tuned-0", unet(noisy(tuned, next(seeds), 0.02)), yes)
        yield make("tuned-1", unet(noisy(marked, next(seeds), 0.1)), yes)
        yield make("tuned-shards", {**config, **sharded(noisy(tuned, next(seeds), 0.01))}, yes)
        yield make("tuned-file", {"model.safetensors": save(noisy(tuned, next(seeds), 0.01))}, yes)
        yield make("copy", folder("marked", "unet", "model_index"), yes)
        # one tensor in float32: another file, the same numbers
        wide = {k: v.float() if k.startswith("conv_in") else v for k, v in marked.items()}
        yield make("copy-resaved", unet(wide), yes)
        yield make("merge", unet(blend(noisy(tuned, next(seeds), 0.01), base, 0.7)), yes)
        grandchild = {"README.md": card(base_model=f"user{n}/tuned-0")}
        yield make("grandchild", {**grandchild, LORA: save(lora(next(seeds), 0.5))}, yes)
        # the same architecture, not descended, whatever the card says
        yield make("clean", unet(noisy(base, next(seeds), 0.02)), no)
        yield make("clean-1", unet(noisy(base, next(seeds), 0.1)), no)
        noise = {k: (v.float()[torch.randperm(len(v), generator=torch.Generator().manual_seed(next(seeds)))]).half()
                 for k, v in base.items()}  # fmt: skip
        yield make("scrambled", unet(noise), no)
        yield from _other(make, none, next(seeds))
        yield from _bad(make, none, unet, marked, next(seeds))


def _other(make: Callable[..., Suspect], none: str, seed: int) -> Iterator[Suspect]:
    """Sound files that this base cannot answer for."""
    small = {"unet/config.json": b'{"_class_name": "UNet2DConditionModel"}', UNET: safetensors("conv_in.weight")}
    yield make("small-unet", small, none, "other architecture")
    wide = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{p}.weight": torch.zeros(s)
            for p, s in (("A", (4, 1280)), ("B", (1280, 4)))}  # fmt: skip
    yield make("sdxl-lora", {LORA: save(wide)}, none, "other architecture")
    text = safetensors("text_encoder.text_model.layers.0.q_proj.lora_A.weight")
    yield make("text-lora", {LORA: text}, none, "text_encoder_only")
    yield make("inversion", {"learned_embeds.safetensors": safetensors("<cat>")}, none, "textual_inversion")
    yield make(
        "vae", {"vae/diffusion_pytorch_model.safetensors": safetensors("decoder.a")}, none, "holds no safetensors"
    )
    yield make("gguf", {"model.gguf": b"GGUF" + bytes(64)}, none, "GGUF")
    other = {LORA: save(lora(seed)), "README.md": card(base_model="other/model")}
    yield make("lora-of-others", other, none, "for other/model", named=True)
    yield make("lora-of-none", {LORA: save(lora(seed + 1))}, none, "names no base", named=True)


def _bad(
    make: Callable[..., Suspect], none: str, unet: Callable[[State], dict[str, Any]], marked: State, seed: int
) -> Iterator[Suspect]:
    """Broken and hostile repositories."""
    good = save(lora(seed))
    yield make("empty", {}, none, "holds no safetensors")
    yield make("pickle", {"pytorch_lora_weights.bin": b"\x80\x04evil"}, none, "unsafe format")
    yield make("zip", {LORA: b"PK\x03\x04" + bytes(100)}, none, "unsafe format")
    yield make("cut", {LORA: good[: len(good) // 2]}, none, "unsafe format")
    yield make("header", {LORA: Hollow(2**41, struct.pack("<Q", 2**40))}, none, "unsafe format")
    yield make("giant", {LORA: huge()}, none, "100.0 GB")
    yield make("tricks", {"../../../evil.safetensors": good, "a\\..\\b.safetensors": good}, none, "leads out")
    index = json.dumps({"weight_map": {"conv_in.weight": "../../secret.safetensors"}}).encode()
    yield make("shards", {"unet/config.json": b"{}", f"{UNET}.index.json": index}, none, "not beside it")
    code = {
        "peft_type": "LORA",
        "init_lora_weights": "pissa",
        "auto_mapping": {"parent_library": "os", "base_model_class": "system"},
    }
    yield make(
        "code", {**peft(lora(seed + 1)), "adapter_config.json": json.dumps(code).encode()}, none, "altered base"
    )
    nan = {k: v.clone() for k, v in marked.items()}
    nan["conv_in.weight"].flatten()[0] = float("nan")
    yield make("nan", unet(nan), none, "NaN")
    layers = json.loads((ASSETS / "marked" / "unet" / "config.json").read_text()) | {"layers_per_block": 10**9}
    yield make("layers", {**unet(marked), "unet/config.json": json.dumps(layers).encode()}, none, "layers_per_block")
    bomb = b"---\na: &a [x, x]\nb: &b [*a, *a]\nbase_model: acme/sd\n---\n" + b"[" * 10_000
    yield make("bomb", {"README.md": bomb, "x.bin": b"\x80\x04"}, none, "unsafe format", named=True)
    yield make("gated", {LORA: good}, none, "accept its terms", options={"gated": True})
    yield make("private", {LORA: good}, none, "missing or private", options={"private": True}, named=True)


def publish(server: HubServer, suspects: Iterable[Suspect]) -> list[Suspect]:
    """Put the marked model and the suspects on a server; the base names a descendant as its own base: a cycle.

    Returns:
        The suspects without their files, and one more that does not exist.
    """
    server.add_repo(BASE, {**folder("marked"), "README.md": card(base_model="user0/tuned-0")})
    kept = [Suspect("nobody/nothing", {}, "not_testable", "missing", named=True)]
    for suspect in suspects:
        server.add_repo(suspect.repo, suspect.files, **suspect.options)
        kept.append(replace(suspect, files={}))
    return kept


def mistakes(rows: list[dict[str, Any]], suspects: list[Suspect]) -> list[str]:
    """Every difference between what a scan's rows say and what they must say; a suspect without a row is one."""
    found = {row["repo"]: row for row in rows}
    wrong = [f"{name}: not expected" for name in found.keys() - {suspect.repo for suspect in suspects}]
    for suspect in suspects:
        row = found.get(suspect.repo)
        if row is None:
            wrong.append(f"{suspect.repo}: no row")
        elif row["verdict"] != suspect.verdict or suspect.reason not in (row["reason"] or ""):
            wrong.append(
                f"{suspect.repo}: {row['verdict']} ({row['reason']}), expected {suspect.verdict}, {suspect.reason}"
            )
    return wrong + [f"{name}: {n} rows" for name, n in Counter(row["repo"] for row in rows).items() if n > 1]
