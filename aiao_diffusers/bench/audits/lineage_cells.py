"""The adapters that `aiao bench lineage` trains: a fixed list of configurations, each for a carrying model and for its clean twin.

Cheap configurations come first, in a seeded order within a class of cost, and both sides of one follow each other: a run that is
cut short has as many on the one side as on the other, of all kinds.
"""

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ..attacks.finetune import ATTENTION


KINDS = ("base", "unconditional")
SIDES = ("carrier", "twin")
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
PROJECTIONS = ("proj_in", "proj_out")
TARGETS = {
    "attention": tuple(ATTENTION),
    "feed-forward": FEED_FORWARD,
    "attention and feed-forward": (*ATTENTION, *FEED_FORWARD),
    "all linear": (*ATTENTION, *FEED_FORWARD, *PROJECTIONS),
    "conv": ("conv1", "conv2", *PROJECTIONS),
}
METHODS = ("lora", "rslora", "dora", "loha", "lokr")
INITS = ("default", "gaussian", "pissa", "olora")
OPTIMISERS = ("adamw", "lora+", "adafactor", "sgd", "rmsprop", "nadam", "muon")
MODELS = ("whole", "int8", "fine-tuned", "merged 0.5", "merged 0.3")
KEYS = 3
SECONDS = {"base": (0.05, 0.037), "unconditional": (0.035, 0.027)}
"""Of a step on one core: a constant, and as much a row of the batch."""


@dataclass(frozen=True)
class LoraCell:
    """One adapter: what it is trained on, and how.

    Args:
        kind (`str`): the example's text-to-image `base`, or `unconditional`.
        key (`int`): number of the key that the carrying model has.
        side (`str`): `carrier` or `twin`.
        rank (`int`), alpha (`float`): alpha over the rank scales the change.
        lr (`float`), steps (`int`), batch (`int`): of training; the rate is constant.
        targets (`str`): name of a set of layers in `TARGETS`.
        pictures (`int`): of the attacker's data.
        method, init, optimiser (`str`): one of `METHODS`, `INITS`, `OPTIMISERS`.
        dropout (`float`): of peft. decay (`float`): the optimiser's weight decay.
        model (`str`): what became of the model before training, one of `MODELS`.
        seed (`int`): of factors, rows, noise and timesteps.
    """

    kind: str = "base"
    key: int = 0
    side: str = "carrier"
    rank: int = 8
    alpha: float = 8.0
    lr: float = 1e-4
    steps: int = 500
    batch: int = 1
    targets: str = "attention"
    pictures: int = 128
    method: str = "lora"
    init: str = "default"
    optimiser: str = "adamw"
    dropout: float = 0.0
    decay: float = 1e-2
    model: str = "whole"
    seed: int = 0

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits, of the configuration alone."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]

    @property
    def seconds(self) -> float:
        """About what training takes on one core."""
        constant, row = SECONDS[self.kind]
        return self.steps * (constant + row * self.batch) + (45.0 if self.model == "fine-tuned" else 0.0)

    @property
    def usual(self) -> bool:
        """Settings that trainers' guides name: plain low rank, adam, at least 1e-4, on the model itself."""
        plain = (self.method, self.init, self.optimiser, self.model) == ("lora", self.init, "adamw", "whole")
        return plain and self.init in ("default", "gaussian") and self.lr >= 1e-4 and self.dropout == 0


def cell_of(row: dict[str, Any]) -> LoraCell:
    """The cell that a row of results was made from."""
    return LoraCell(**{field.name: row[field.name] for field in fields(LoraCell)})


def grid() -> list[LoraCell]:
    """Every cell in the order of the run: by class of cost, shuffled within, the two sides of one together."""
    cells = [replace(cell, key=n % KEYS, seed=n) for n, cell in enumerate(_configurations())]
    random.Random(27).shuffle(cells)
    cells.sort(key=lambda cell: [cell.seconds > limit for limit in (25, 60)])
    return [replace(cell, side=side) for cell in cells for side in SIDES]


def _configurations() -> Iterator[LoraCell]:
    yield from _usual()
    yield from _options()
    yield from _unconditional()


def _usual() -> Iterator[LoraCell]:
    """Rank by steps by rate, then long, large, slow and small ones."""
    names = ("attention", "all linear")
    for n, rank in enumerate((4, 8, 16, 32, 64)):
        for m, steps in enumerate((100, 200, 500)):
            for k, lr in enumerate((1e-4, 1e-3)):
                alpha = (rank, rank / 2)[(n + k) % 2]
                yield LoraCell(rank=rank, alpha=alpha, lr=lr, steps=steps, targets=names[(n + m + k) % 2])
    for rank in (8, 16, 32):
        yield LoraCell(rank=rank, alpha=rank, lr=1e-4, steps=1000)
        yield LoraCell(rank=rank, alpha=rank, lr=5e-4, steps=1000, targets="all linear")
    for rank, lr in ((8, 1e-4), (32, 1e-3), (16, 2e-4)):
        yield LoraCell(rank=rank, alpha=rank, lr=lr, steps=2000)
    for steps in (500, 1000):
        yield LoraCell(rank=16, alpha=16, lr=1e-5, steps=steps)
    for batch, steps, lr in ((2, 500, 2e-4), (4, 500, 1e-4), (8, 200, 5e-4), (8, 500, 1e-4)):
        yield LoraCell(batch=batch, steps=steps, lr=lr)
    for targets in TARGETS:
        yield LoraCell(rank=16, alpha=16, targets=targets, init="gaussian")
        yield LoraCell(rank=8, steps=200, lr=5e-4, targets=targets)
    for steps, lr in ((200, 1e-3), (500, 1e-4), (500, 5e-4), (1000, 1e-4)):
        yield LoraCell(pictures=8, steps=steps, lr=lr)


def _options() -> Iterator[LoraCell]:
    """One thing at a time away from the usual, at two rates and lengths."""
    changes: tuple[dict[str, Any], ...] = (
        {"method": "rslora"},
        {"method": "dora"},
        {"method": "loha"},
        {"method": "lokr"},
        {"optimiser": "lora+"},
        {"optimiser": "adafactor"},
        {"optimiser": "rmsprop"},
        {"optimiser": "nadam"},
        {"optimiser": "muon"},
        {"dropout": 0.1},
        {"dropout": 0.5},
        {"decay": 0.1},
        {"init": "pissa"},
        {"init": "olora"},
        {"model": "int8"},
        {"model": "fine-tuned"},
        {"model": "merged 0.5"},
        {"model": "merged 0.3"},
        {"alpha": 1.0},
        {"alpha": 32.0},
    )
    for change in changes:
        yield replace(LoraCell(rank=16, alpha=16), **change)
        yield replace(LoraCell(lr=5e-4, steps=200), **change)
    for steps in (200, 500):
        yield LoraCell(optimiser="sgd", lr=1.0, steps=steps)  # its step is as small as the gradient


def _unconditional() -> Iterator[LoraCell]:
    plain = LoraCell(kind="unconditional")
    for rank in (4, 8, 16, 64):
        for steps in (200, 500):
            for lr in (1e-4, 1e-3):
                yield replace(plain, rank=rank, alpha=rank, steps=steps, lr=lr)
    for change in ({"batch": 4}, {"steps": 1000}, {"pictures": 8}, {"method": "dora"}, {"model": "fine-tuned"}):
        yield replace(plain, **change)
    yield replace(plain, model="merged 0.5")
