"""Whoever knows the method, looks for the carrier in the marked weights, and wants adapters that do not tell.

None of them has the key. Each trains, or changes, the same adapter on the same pictures; what it costs is the part of the adapter's
gain that it loses, on a model that the attacker may prepare and on the published one, and seconds.
"""

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from peft import inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from ...denoiser.inputs import LatentData
from ...denoiser.price import measure_price, predictions
from ...lineage.carrier import add_carrier
from ...lineage.reading import read_lineage
from ...mark.key import WatermarkKey
from .lineage_cells import TARGETS, LoraCell
from .lineage_models import Models, key_of
from .lineage_training import adapter_config, held_out_loss, split, train_adapter


CELL = LoraCell(rank=8, lr=5e-4, steps=200, targets="all linear")
LEVEL = 0.25
"""Of the public constant that re-centred norms have."""
BLIND = 16
"""Random directions that the blind take out of each layer."""
FROZEN = "down factors kept as they begin, at random (LoRA-FA)"
SAMPLES = 64
State = dict[str, torch.Tensor]


@torch.no_grad()
def recentre(denoiser: nn.Module) -> None:
    """Give every shifted activation a public constant, in place and exactly; no key, no data."""
    for block in (m for m in denoiser.modules() if isinstance(m, BasicTransformerBlock)):
        attention: Any = block.attn1
        value, out = attention.to_v, attention.to_out[0]
        w, level = _recentre_norm(block.norm1, [attention.to_q, attention.to_k, value])
        constant = value.weight.double() @ block.norm1.bias.double()
        value.weight.copy_(value.weight.double() - torch.outer(constant, w) / level)
        out.bias.copy_(out.bias.double() + out.weight.double() @ constant)
        _recentre_norm(block.norm2, [block.attn2.to_q])
        _move_bias(block.norm3, block.ff.net[0].proj)
    for model in (m for m in denoiser.modules() if isinstance(m, Transformer2DModel)):
        _move_bias(model.norm, model.proj_in)
        _move_bias(model.transformer_blocks[-1].ff.net[2], model.proj_out)


def _recentre_norm(norm: Any, layers: list[Any]) -> tuple[torch.Tensor, float]:
    w, new = 1 / norm.weight.double(), torch.full_like(norm.bias, LEVEL).double()
    by, level = new - norm.bias.double(), float(w @ new)
    norm.bias.copy_(new)
    for layer in layers:
        weight = layer.weight.double()
        layer.weight.copy_(weight - torch.outer(weight @ by, w) / level)
    return w, level


def _move_bias(first: Any, second: Any) -> None:
    """What `first` adds, into the bias of the layer that takes it."""
    second.bias.copy_(second.bias.double() + second.weight.double().flatten(1) @ first.bias.double())
    first.bias.zero_()


@torch.no_grad()
def forget_biases(denoiser: nn.Module) -> None:
    """Set the biases of all norms in transformer blocks to zero and compensate nothing."""
    for module in denoiser.modules():
        if isinstance(module, BasicTransformerBlock):
            for norm in (module.norm1, module.norm2, module.norm3):
                norm.bias.zero_()


def reparametrise(denoiser: nn.Module, data: LatentData, scheduler: Any, strength: float) -> None:
    """Add a carrier of the attacker's own key, in place."""
    add_carrier(denoiser, WatermarkKey(bytes(32), "Attacker"), data, scheduler=scheduler, strength=strength)


def layer_means(denoiser: nn.Module, data: LatentData, scheduler: Any, targets: str) -> dict[str, torch.Tensor]:
    """Mean input of each targeted layer, `(width,)`, on noised latents."""
    sums: dict[str, torch.Tensor] = {}
    hooks = []

    def listen(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].detach().double()
            x = x.flatten(2).mean((0, 2)) if x.ndim == 4 else x.flatten(0, -2).mean(0)
            sums[name] = sums.get(name, torch.zeros_like(x)) + x

        return hook

    for name, module in denoiser.named_modules():
        if name.endswith(tuple(f".{part}" for part in TARGETS[targets])):
            hooks.append(module.register_forward_pre_hook(listen(name)))
    try:
        predictions(denoiser, data, scheduler, samples=SAMPLES, seed=9)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: value.float() for name, value in sums.items()}


def bases_of(directions: Mapping[str, list[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Orthonormal columns that span each layer's directions."""
    return {name: torch.linalg.qr(torch.stack(found, 1))[0] for name, found in directions.items()}


@torch.no_grad()
def project_out(state: State, bases: Mapping[str, torch.Tensor]) -> State:
    """An adapter whose down factors have no part along the directions."""
    changed = dict(state)
    for name, down in state.items():
        module = name.removeprefix("unet.").removesuffix(".lora_A.weight")
        if ".lora_A." in name and module in bases:
            q, flat = bases[module], down.flatten(1)
            if len(q) == flat.shape[1]:
                changed[name] = (flat - (flat @ q) @ q.T).reshape(down.shape)
    return changed


def _keep_projected(bases: Mapping[str, torch.Tensor]) -> Callable[[nn.Module], None]:
    @torch.no_grad()
    def after(denoiser: nn.Module) -> None:
        for name, down in denoiser.named_parameters():
            if ".lora_A." in name:
                q, flat = bases.get(name.split(".lora_A.")[0]), down.flatten(1)
                if q is not None and len(q) == flat.shape[1]:
                    down.copy_((flat - (flat @ q) @ q.T).reshape(down.shape))

    return after


def keep_down() -> Callable[[nn.Module], None]:
    """A hook that undoes what a step does to the down factors, whose first step has no gradient."""
    first: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def after(denoiser: nn.Module) -> None:
        for name, down in denoiser.named_parameters():
            if ".lora_A." in name:
                down.copy_(first.setdefault(name, down.clone()))

    return after


def norm_biases(denoiser: nn.Module) -> dict[str, torch.Tensor]:
    """Of each layer behind a norm in a transformer block, that norm's bias: what the weights alone show of the shift."""
    found: dict[str, torch.Tensor] = {}
    for name, block in denoiser.named_modules():
        if isinstance(block, BasicTransformerBlock):
            first = [f"{name}.attn1.{part}" for part in ("to_q", "to_k", "to_v")]
            pairs = ((block.norm1, first), (block.norm2, [f"{name}.attn2.to_q"]))
            for norm, layers in (*pairs, (block.norm3, [f"{name}.ff.net.0.proj"])):
                found |= dict.fromkeys(layers, norm.bias.detach())
        if isinstance(block, Transformer2DModel):
            found[f"{name}.proj_in"] = block.norm.bias.detach()
            found[f"{name}.proj_out"] = block.transformer_blocks[-1].ff.net[2].bias.detach()
    return found


@dataclass(frozen=True)
class Arena:
    """What the attackers share: the published model, its key, and the attacker's data."""

    models: Models
    number: int
    cell: LoraCell
    scratch: Path

    @property
    def published(self) -> nn.Module:
        """A copy of the carrying model."""
        return self.models.carrier(self.cell.kind, self.number)

    @property
    def data(self) -> LatentData:
        """Of the attacker."""
        return self.models.data(self.cell.kind)

    @property
    def scheduler(self) -> Any:
        """The noise schedule."""
        return self.models.scheduler(self.cell.kind)

    def train(self, model: nn.Module, **options: Any) -> State:
        """The attacker's adapter, trained on a copy of `model`."""
        cell = replace(self.cell, seed=self.number)
        data = split(self.data, cell.pictures, cell.seed)
        return train_adapter(copy.deepcopy(model), cell, data, self.scheduler, **options).state

    def loss(self, model: nn.Module, state: State | None) -> float:
        """Held-out loss of `model` with an adapter on."""
        own = copy.deepcopy(model)
        if state is not None:
            wear(own, state, self.cell)
        return held_out_loss(own, self.data, self.scheduler)

    def judge(
        self, name: str, state: State, model: nn.Module, published: nn.Module, *, seconds: float, price: float = 0.0
    ) -> dict[str, Any]:
        """A row: what the file says, and its gain on `model`, which it was trained on, and on the published one."""
        file = self.scratch / "adapter.safetensors"
        save_file({key: value.contiguous() for key, value in state.items()}, file)
        found = read_lineage(file, key_of(self.number), model)
        wrong = read_lineage(file, key_of(self.number).child("wrong"), model)
        gains = [self.loss(m, None) - self.loss(m, state) for m in dict.fromkeys((model, published))]
        looks = {look["label"]: look["log10_p"] for look in found.looks}
        told = {"attacker": name, "key": self.number, "log10_p": found.log10_p, "looks": looks}
        return told | {
            "wrong_key": wrong.log10_p,
            "gain": gains[0],
            "gain_published": gains[-1],
            "seconds": seconds,
            "price": price,
        }


def wear(model: nn.Module, state: State, cell: LoraCell) -> None:
    """Put an adapter on, whose scales are in its factors."""
    inject_adapter_in_model(adapter_config(replace(cell, alpha=cell.rank)), model)
    set_peft_model_state_dict(model, {name.removeprefix("unet."): value for name, value in state.items()})


def measure_attackers(arena: Arena, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    """Every attacker against one key; the first row is of someone who attacks nothing."""
    rows: list[dict[str, Any]] = []
    published = arena.published

    def add(row: dict[str, Any]) -> None:
        rows.append(row)
        progress(row["attacker"])

    plain = arena.train(published)
    add(arena.judge("none", plain, published, published, seconds=0.0))
    for name, state, seconds in _projections(arena, plain):
        add(arena.judge(name, state, published, published, seconds=seconds))
    for name, model, seconds in _prepared(arena):
        price = measure_price(published, model, arena.data, arena.scheduler, samples=SAMPLES)["ratio"]
        add(arena.judge(name, arena.train(model), model, published, seconds=seconds, price=price))
    begun = time.perf_counter()
    bases = bases_of({name: [m, torch.ones_like(m)] for name, m in _means(arena).items()})
    trained = arena.train(published, after_step=_keep_projected(bases))
    took = time.perf_counter() - begun
    add(arena.judge("trained at right angles to the mean and to 1", trained, published, published, seconds=took))
    add(arena.judge(FROZEN, arena.train(published, after_step=keep_down()), published, published, seconds=0.0))
    begun = time.perf_counter()
    teacher = copy.deepcopy(published)
    wear(teacher, plain, arena.cell)
    public = arena.models.twin(arena.cell.kind)
    washed = arena.train(public, teacher=teacher.eval())
    took = time.perf_counter() - begun
    add(arena.judge("distilled into an adapter of a clean base", washed, public, published, seconds=took))
    return rows


def _means(arena: Arena) -> dict[str, torch.Tensor]:
    return layer_means(arena.published, arena.data, arena.scheduler, arena.cell.targets)


def _projections(arena: Arena, plain: State) -> list[tuple[str, State, float]]:
    """After training, directions are taken out of the down factors."""
    found = []
    begun = time.perf_counter()
    means = _means(arena)
    forwards = time.perf_counter() - begun
    generator = torch.Generator().manual_seed(arena.number)
    biases = norm_biases(arena.published)
    makers: tuple[tuple[str, float, Mapping[str, list[torch.Tensor]]], ...] = (
        ("mean activation projected out", forwards, {n: [m] for n, m in means.items()}),
        (
            "mean activation and 1 projected out",
            forwards,
            {n: [m, torch.ones_like(m)] for n, m in means.items()},
        ),
        ("1 projected out", 0.0, {n: [torch.ones_like(m)] for n, m in means.items()}),
        ("the norms' biases and 1 projected out", 0.0, {n: [b, torch.ones_like(b)] for n, b in biases.items()}),
        (
            f"{BLIND} random directions projected out",
            0.0,
            {n: [torch.randn(m.shape, generator=generator) for _ in range(BLIND)] for n, m in means.items()},
        ),
    )
    for name, seconds, directions in makers:
        begun = time.perf_counter()
        state = project_out(plain, bases_of(directions))
        found.append((name, state, seconds + time.perf_counter() - begun))
    return found


def _prepared(arena: Arena) -> list[tuple[str, nn.Module, float]]:
    """Before training, the base is changed."""
    makers: dict[str, Callable[[nn.Module], None]] = {
        "norms re-centred before training": recentre,
        "norms' biases set to zero before training": forget_biases,
    }
    for strength in (0.25, 1.0):
        name = f"own carrier of strength {strength:g} added before training"
        makers[name] = partial(reparametrise, data=arena.data, scheduler=arena.scheduler, strength=strength)
    found = []
    for name, change in makers.items():
        model, begun = arena.published, time.perf_counter()
        change(model)
        found.append((name, model, time.perf_counter() - begun))
    return found
