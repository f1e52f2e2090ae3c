"""Busy and lazy layers: how far fine-tuning moves each layer of a denoiser, from fine-tunes, LoRA files or a short run.

The paper's claim: most of what fine-tuning changes is in few layers, and lazy ones keep what was put into them.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..denoiser.finetune import finetune
from ..denoiser.inputs import LatentData
from ..denoiser.setup import denoiser_of, eval_mode
from ..errors import ConfigError, DataError, WrongBaseError
from ..files.atomic import write_text
from ..files.figure import new_figure
from ..files.text import markdown_table
from ..formats.checkpoint import load_denoiser
from ..verification.suspect import label_of, local_path, open_suspect
from .weight_change import NORMS, StoredWeights


_FORMAT = "aiao-profile-1"
BLOCK_COLUMNS = ("block", "mean relative change")
LAYER_COLUMNS = ("layer", "relative change", "spread", "parameters")


@dataclass(frozen=True)
class LayerChange:
    """One layer: a module with parameters of its own.

    Args:
        name, block: diffusers' names, such as `mid_block.resnets.0.conv1` and `mid_block`.
        parameters (`int`): their number.
        change (`float`): |W' - W| / |W|, Euclidean, over weight and bias together; the mean over the fine-tunes.
        spread (`float`): standard deviation over the fine-tunes, 0 for one.
    """

    name: str
    block: str
    parameters: int
    change: float
    spread: float


@dataclass(frozen=True)
class LayerProfile:
    """How far fine-tuning moves the layers of a denoiser, in order of depth.

    Args:
        base (`str`): what the fine-tunes started from.
        tuned (`tuple[str, ...]`): the fine-tunes.
        layers (`tuple[LayerChange, ...]`): in order of depth.
    Raises:
        DataError: no layer, or nothing was compared.
    """

    base: str
    tuned: tuple[str, ...]
    layers: tuple[LayerChange, ...]

    def __post_init__(self) -> None:
        if not self.layers or not self.tuned:
            raise DataError("a profile needs at least one layer and one fine-tune.")

    def blocks(self) -> dict[str, float]:
        """Mean change of each block's layers, in order of depth."""
        groups: dict[str, list[float]] = defaultdict(list)
        for layer in self.layers:
            groups[layer.block].append(layer.change)
        return {block: sum(changes) / len(changes) for block, changes in groups.items()}

    def moved(self) -> list[LayerChange]:
        """The layers that changed at all, busiest first; a LoRA leaves most alone."""
        return sorted((x for x in self.layers if x.change > 0), key=lambda x: -x.change)

    def busiest_share(self, share: float = 0.1) -> float:
        """Share of the sum of relative changes that the busiest `share` of the moved layers hold; even would be `share`.

        Raises:
            ConfigError: `share` is not in (0, 1]. DataError: nothing moved.
        """
        if not 0 < share <= 1:
            raise ConfigError(f"share must be in (0, 1], got {share}.")
        moved = self.moved()
        if not moved:
            raise DataError("no layer moved: base and fine-tunes are the same weights.")
        count = max(1, round(share * len(moved)))
        return sum(x.change for x in moved[:count]) / sum(x.change for x in moved)

    def laziest(self, denoiser: nn.Module, share: float) -> list[str]:
        """Names of the parameters of the laziest layers that together hold at most `share` of them, at least one layer.

        Normalisation layers are left out: few parameters, and torch 2.13 crashes on the CPU in GroupNorm's backward where
        its weight needs a gradient and its input does not.

        Raises:
            WrongBaseError: a layer is missing in `denoiser`.
        """
        return self._take(sorted(self.layers, key=lambda x: x.change), denoiser, share)

    def busiest(self, denoiser: nn.Module, share: float) -> list[str]:
        """The same of the busiest layers."""
        return self._take(sorted(self.layers, key=lambda x: -x.change), denoiser, share)

    def _take(self, ordered: Sequence[LayerChange], denoiser: nn.Module, share: float) -> list[str]:
        modules = dict(denoiser.named_modules())
        missing = [x.name for x in self.layers if x.name not in modules]
        if missing:
            raise WrongBaseError(f"the profile of '{self.base}' names layers this denoiser lacks: {missing[:3]}.")
        room = share * sum(p.numel() for p in denoiser.parameters())
        names: list[str] = []
        for layer in ordered:
            module = modules[layer.name]
            if isinstance(module, NORMS) or (names and layer.parameters > room):
                continue
            room -= layer.parameters
            names += [f"{layer.name}.{name}" for name, _ in module.named_parameters(recurse=False)]
        return names

    def save(self, path: str | Path) -> Path:
        """Write JSON, whole or not at all."""
        path = Path(path)
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> "LayerProfile":
        """Read what `save` wrote.

        Raises:
            DataError: missing, cut, or of another format.
        """
        try:
            document = json.loads(Path(path).read_text())
            if document["format"] != _FORMAT:
                raise DataError(f"'{path}' is of format {document['format']!r}, this version reads {_FORMAT!r}.")
            layers = tuple(LayerChange(**layer) for layer in document["layers"])
            return cls(document["base"], tuple(document["tuned"]), layers)
        except DataError:
            raise
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"'{path}' is no layer profile ({error}): write one with `aiao profile --json`."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "format": _FORMAT,
            "base": self.base,
            "tuned": list(self.tuned),
            "busiest_tenth": self.busiest_share(),
            "blocks": self.blocks(),
            "layers": [asdict(layer) for layer in self.layers],
        }

    def to_markdown(self, rows: int = 10) -> str:
        """Blocks by depth, then the `rows` busiest and laziest layers that moved."""
        moved = self.moved()
        lines = [
            f"# Busy and lazy layers of {self.base}",
            "",
            f"{len(self.tuned)} fine-tunes: {', '.join(self.tuned)}. {len(moved)} of {len(self.layers)} layers moved; "
            f"the busiest tenth of these holds {self.busiest_share():.0%} of the summed relative change.",
            "",
            markdown_table(BLOCK_COLUMNS, [(block, f"{change:.4f}") for block, change in self.blocks().items()]),
            "",
        ]
        shown = moved if len(moved) <= 2 * rows else [*moved[:rows], *moved[-rows:]]
        cells = [(x.name, f"{x.change:.4f}", f"{x.spread:.4f}", str(x.parameters)) for x in shown]
        lines.append(markdown_table(LAYER_COLUMNS, cells))
        return "\n".join(lines) + "\n"

    def plot(self) -> Any:
        """A matplotlib figure: relative change over depth, one colour a block.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure = new_figure(9, 3.5)
        axes = figure.subplots()
        for block in self.blocks():
            places = [i for i, layer in enumerate(self.layers) if layer.block == block and layer.change > 0]
            axes.bar(places, [self.layers[i].change for i in places], width=1.0, label=block)
        axes.set_yscale("log")
        axes.set_xlabel("layer, by depth")
        axes.set_ylabel("relative change")
        axes.legend(ncols=4, fontsize="x-small")
        return figure


def profile(
    base: Any,
    tuned: Any,
    *more: Any,
    weight_name: str | None = None,
    callback: Callable[[int, int], None] | None = None,
) -> LayerProfile:
    """Relative change of every layer from `base` to each fine-tune, averaged over them.

    Args:
        base: a denoiser, a pipeline, a folder or a Hub repository id.
        tuned, more: the like, or LoRA files and folders, whose own scaled delta counts. A list is taken apart.
        weight_name: which file of a LoRA folder with several.
        callback (*optional*): called after each fine-tune with the number compared and the number of all.
    Raises:
        SuspectError, UnsafeFileError, NotTestableError: a fine-tune cannot be read. WrongBaseError: it does not fit `base`.
    """
    sources = [*(tuned if isinstance(tuned, list | tuple) else [tuned]), *more]
    denoiser = denoiser_of(base) or load_denoiser(local_path(base), dtype=torch.float32)
    # References, not copies: a LoRA swaps tensors in and out and never writes into these.
    before = {name: p.data for name, p in denoiser.named_parameters()}
    rows = []
    for source in sources:
        with open_suspect(source, denoiser, weight_name=weight_name) as found:
            after = {name: p.data for name, p in found.denoiser.named_parameters()}
            if after.keys() != before.keys():
                odd = sorted(after.keys() ^ before.keys())
                raise WrongBaseError(
                    f"'{label_of(source)}' and the base differ in {len(odd)} weights, first {odd[0]}."
                )
            rows.append(_measure_changes((name, old, after[name]) for name, old in before.items()))
        if callback is not None:
            callback(len(rows), len(sources))
    return _build_profile(label_of(base), [label_of(source) for source in sources], denoiser, rows)


def self_profile(
    model: Any,
    data: LatentData,
    scheduler: Any = None,
    *,
    steps: int = 40,
    lr: float = 1e-4,
    batch_size: int = 8,
    seed: int = 0,
) -> LayerProfile:
    """Profile by a short full fine-tune on `data`; the model gets its weights back bit for bit.

    Args:
        model: a pipeline, or a denoiser together with `scheduler`. The other options are `finetune`'s.
    """
    denoiser = denoiser_of(model)
    scheduler = scheduler or getattr(model, "scheduler", None)
    if denoiser is None or scheduler is None:
        raise ConfigError("self_profile takes a pipeline, or a denoiser and its scheduler.")
    flags = [(p, p.requires_grad) for p in denoiser.parameters()]
    stored = StoredWeights(denoiser, [name for name, _ in denoiser.named_parameters()])
    try:
        with eval_mode(denoiser):
            finetune(denoiser, data, scheduler, steps=steps, lr=lr, batch_size=batch_size, seed=seed)
            row = _measure_changes((name, old, p.data) for name, p, old in stored.originals())
    finally:
        stored.undo()
        for p, flag in flags:
            p.requires_grad_(flag)
            p.grad = None
    return _build_profile(label_of(model), [f"own fine-tune, {steps} steps"], denoiser, [row])


def _measure_changes(triples: Iterator[tuple[str, torch.Tensor, torch.Tensor]]) -> dict[str, float]:
    """Relative change by layer name; from zero weights any move is total, 1."""
    moved: dict[str, float] = defaultdict(float)
    size: dict[str, float] = defaultdict(float)
    for name, old, new in triples:
        if old.shape != new.shape:
            raise WrongBaseError(f"{name} has shape {list(new.shape)}, the base has {list(old.shape)}.")
        layer = name.rpartition(".")[0]
        old64 = old.double()
        moved[layer] += float((new.to(old64) - old64).square().sum())
        size[layer] += float(old64.square().sum())
    return {name: (d / size[name]) ** 0.5 if size[name] else float(d > 0) for name, d in moved.items()}


def _build_profile(
    base: str, tuned: Sequence[str], denoiser: nn.Module, rows: Sequence[Mapping[str, float]]
) -> LayerProfile:
    counts: dict[str, int] = defaultdict(int)
    for name, p in denoiser.named_parameters():
        counts[name.rpartition(".")[0]] += p.numel()
    layers = []
    for name in sorted(counts, key=_depth):
        changes = torch.tensor([row[name] for row in rows], dtype=torch.float64)
        spread = float(changes.std()) if len(rows) > 1 else 0.0
        layers.append(LayerChange(name, block_of(name), counts[name], float(changes.mean()), spread))
    return LayerProfile(base, tuple(tuned), tuple(layers))


def block_of(layer: str) -> str:
    """`down_blocks.0`, `mid_block`, `transformer_blocks.7`: the outermost module, with its number."""
    found = re.match(r"[^.]+(\.\d+)?", layer)
    return found.group() if found else layer


# diffusers lists a U-Net's middle block after both ends; everything not named here keeps its place.
_STAGES = ("down_blocks", "mid_block", "up_blocks", "conv_norm_out", "conv_out")


def _depth(layer: str) -> int:
    """Stage of a layer; a stable sort by it gives depth order where diffusers' own order does not."""
    head = layer.partition(".")[0]
    return _STAGES.index(head) + 1 if head in _STAGES else 0
