"""The audit of formats: what each is recognised as, whether it loads, and what the verdict says of it.

Every adapter row is the same change of the same denoiser, that of the example's LoRA with convolutions and varying ranks
added; every whole model is that change fused in. The oracle is the denoiser that a stock library loads of the same input, or
whose weights were patched directly. Where other weights lie beside, they are the clean model's beside the marked one, and the
marked one's beside the clean: a reader of the wrong file turns both verdicts.
"""

import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ...denoiser.call import evaluate
from ...denoiser.setup import for_reading
from ...denoiser.sites import unwrap
from ...errors import AIAOError
from ...files.peak import Peak
from ...files.safetensors_header import load_tensors
from ...formats.adapter_algebra import scaling_of
from ...formats.adapter_keys import parse
from ...formats.checkpoint import load_denoiser
from ...formats.detect import detect
from ...formats.lora import apply_lora
from ...mark.key import WatermarkKey
from ...mark.record import WatermarkRecord
from ...verification.verify import verify
from ..context import ASSETS
from ..progress import Progress, log_progress
from .format_files import Change, Factors, Format, groups, whole_models
from .format_tables import Row


CONVOLUTIONS = ("down_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.0.conv_shortcut", "conv_in")
MIB = 2**20
CPU, REFUSAL = torch.device("cpu"), 400
PLACES = {"marked": "marked", "clean": "base"}


def change_of(base: nn.Module, lora: Path, seed: int = 0) -> Change:
    """The change of a LoRA file, with three convolutions added and the last module's rank cut to 2.

    Args:
        base: a denoiser that has `CONVOLUTIONS`. lora: a low-rank adapter file. seed: of the added factors.
    """
    factors: Factors = {}
    for group in parse(load_tensors(lora), base).groups:
        if group.algorithm == "lora":
            down, up = group.factors["down"].float(), group.factors["up"].float()
            factors[group.module] = (down, up * scaling_of(group, None))
    generator = torch.Generator().manual_seed(seed)
    for module in CONVOLUTIONS:
        out, inner, *kernel = Change(base, {}).weight(module).shape
        down = torch.randn(3, inner, *kernel, generator=generator) * 0.03
        factors[module] = (down, torch.randn(out, 3, 1, 1, generator=generator) * 0.03)
    last = next(reversed([m for m in factors if m not in CONVOLUTIONS]))
    factors[last] = (factors[last][0][:2].clone(), factors[last][1][:, :2].clone())
    return Change(base, factors)


class _Verdict(NamedTuple):
    verdict: str
    log10_p: float | None
    reason: str | None


@contextmanager
def _open_fine_tune(source: Any, base: nn.Module, weight_name: str | None) -> Iterator[tuple[nn.Module, Any]]:
    if isinstance(source, nn.Module):
        yield for_reading(unwrap(source))[0], None
        return
    found = detect(source, weight_name)
    if found.kind in ("pipeline", "denoiser", "single_file"):
        yield load_denoiser(source, base=base, dtype=torch.float32), None
        return
    with apply_lora(base, source, weight_name=weight_name) as adapter:
        yield base, adapter


class Bench:
    """The example's marked and clean denoisers, their record and key, and the change that every format carries.

    Args:
        assets: the example's folder. trials: Monte Carlo trials a look, at most. seed: of trials and added factors.
    """

    def __init__(self, assets: Path = ASSETS, trials: int = 4, seed: int = 0) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # git keeps no file modes, and this key is public on purpose
            self.key = WatermarkKey.load(assets / "demo.key")
        self.record = WatermarkRecord.load(assets / "marked")
        self.trials, self.seed = trials, seed
        lora = assets / "lora" / "pytorch_lora_weights.safetensors"
        models = {name: load_denoiser(assets / path, dtype=torch.float32) for name, path in PLACES.items()}
        twins = {"marked": models["clean"], "clean": models["marked"]}
        self.changes = {
            name: replace(change_of(model, lora, seed), twin=twins[name]) for name, model in models.items()
        }

    def row(self, fmt: Format, folder: Path, group: str = "") -> Row:
        """Write the format under `folder`, load it, compare it with the oracle, and verify both models with it."""
        sources = {name: fmt.write(change, folder / name) for name, change in self.changes.items()}
        source, change = sources["marked"], self.changes["marked"]
        kind, refusal, adapter, error = _kind(source, fmt.weight_name), None, None, None
        peak, started = Peak(), time.perf_counter()
        try:
            with peak.measured():
                context = _open_fine_tune(source, change.base, fmt.weight_name)
                denoiser, adapter = context.__enter__()
            seconds = time.perf_counter() - started
            try:
                mine = self._predict(denoiser)
            finally:
                context.__exit__(None, None, None)
            bare, wanted = self._predict(change.base), self._predict(_oracle(fmt, change, source))
            error = float((mine - wanted).abs().max() / (wanted - bare).abs().max())
        except AIAOError as reason:
            seconds, refusal = time.perf_counter() - started, f"{type(reason).__name__}: {reason}"
        verdicts = {name: self._verdict(sources[name], self.changes[name], fmt) for name in sources}
        size = sum(p.numel() * 4 for p in change.base.parameters()) / MIB
        return Row(
            format=fmt.name,
            group=group,
            kind=kind,
            loads=refusal is None,
            refusal=None if refusal is None else _told(verdicts["marked"].reason or refusal, folder / "marked"),
            modules=getattr(adapter, "modules", None),
            delta_norm=getattr(adapter, "delta_norm", None),
            oracle=fmt.oracle if refusal is None else None,
            oracle_error=error,
            marked=verdicts["marked"].verdict,
            marked_log10_p=verdicts["marked"].log10_p,
            clean=verdicts["clean"].verdict,
            clean_log10_p=verdicts["clean"].log10_p,
            seconds=seconds,
            peak_mib=peak.mib,
            peak_ratio=None if peak.mib is None else peak.mib / size,
            as_expected=_meets_expectation(fmt, kind, refusal, error, verdicts),
        )

    def _predict(self, denoiser: Any) -> torch.Tensor:
        """The noise prediction of one input; channels that the record does not know are zero."""
        row = self.record.bank.take(torch.tensor([0]))
        noise = torch.randn(row.latents.shape, generator=torch.Generator().manual_seed(0))
        t = torch.tensor([self.record.timesteps // 2])
        with torch.no_grad():
            sample, level = self.record.noised(row.latents, noise, t), self.record.schedule.level(t)
            lacking = denoiser.config.in_channels - sample.shape[1]  # not of its layer, which an adapter may wrap
            sample = nn.functional.pad(sample, (0, 0, 0, 0, 0, lacking))
            predicted: torch.Tensor = evaluate(denoiser, sample, level, row.keywords(CPU, torch.float32))
        return predicted

    def _verdict(self, source: Any, change: Change, fmt: Format) -> _Verdict:
        try:
            report = verify(
                source,
                self.key,
                base=None if isinstance(source, nn.Module) else change.base,
                record=self.record,
                weight_name=fmt.weight_name,
                trials=self.trials,
                seed=self.seed,
            )
        except AIAOError as error:
            return _Verdict(type(error).__name__, None, f"{type(error).__name__}: {error}")
        return _Verdict(report.verdict, report.log10_p, report.reason)


def _kind(source: Any, weight_name: str | None) -> str:
    if isinstance(source, nn.Module):
        return "in memory"
    try:
        return detect(source, weight_name).kind
    except AIAOError as error:
        return type(error).__name__


def _oracle(fmt: Format, change: Change, source: Any) -> nn.Module:
    """The denoiser that the source stands for: by a stock library where one loads it, else by patched weights."""
    if fmt.stock is None:
        patched: nn.Module = change.model(fmt.merged(change))
        return patched
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a config's fields that a stock loader does not know
        return fmt.stock(change, source)


def _told(refusal: str, folder: Path) -> str:
    """A refusal without the place where the input happened to lie."""
    text = " ".join(refusal.replace(f"{folder}/", "").replace(str(folder), "FOLDER").split())
    return text if len(text) <= REFUSAL else text[: REFUSAL - 1] + "…"


def _meets_expectation(
    fmt: Format, kind: str, refusal: str | None, error: float | None, verdicts: dict[str, _Verdict]
) -> bool:
    marked, clean = verdicts["marked"].verdict, verdicts["clean"].verdict
    if not fmt.loads:
        return kind == fmt.kind and refusal is not None and "verified" not in (marked, clean)
    fits = error is not None and error <= fmt.rounding
    return kind == fmt.kind and fits and (marked, clean) == ("verified", "not_verified")


def run(assets: Path = ASSETS, trials: int = 4, seed: int = 0, progress: Progress = log_progress) -> list[Row]:
    """Every row of the table.

    Args:
        trials (`int`): Monte Carlo trials a look, at most. seed (`int`): of trials and added factors.
    Raises:
        SuspectError, KeyFileError, RecordError: `assets` is not the example's folder.
    """
    bench = Bench(assets, trials, seed)
    formats = [(group, fmt) for group, members in groups().items() for fmt in members]
    rows: list[Row] = []
    for group, fmt in formats:
        with tempfile.TemporaryDirectory() as folder:
            for name in bench.changes:
                (Path(folder) / name).mkdir()
            rows.append(bench.row(fmt, Path(folder), group))
        progress(len(rows), len(formats), f"{fmt.name}: {rows[-1].marked}, {rows[-1].clean}")
    return rows


def unexpected(rows: Iterable[Row]) -> list[str]:
    """The formats whose rows are not what they stand for."""
    return [row.format for row in rows if not row.as_expected]


def memory(
    widths: tuple[int, ...] = (192, 384, 768), progress: Progress = log_progress
) -> list[tuple[str, float, float | None, float]]:
    """Peak memory of loading a larger, random U-Net whole: format, size in MiB as float32, peak over size, seconds."""
    torch.manual_seed(0)
    base: Any = UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=768,
    ).eval()
    size = sum(p.numel() * 4 for p in base.parameters()) / MIB
    formats = list(whole_models())
    rows: list[tuple[str, float, float | None, float]] = []
    for fmt in formats:
        with tempfile.TemporaryDirectory() as folder:
            source, peak = fmt.write(Change(base, {}), Path(folder)), Peak()
            started = time.perf_counter()
            with peak.measured():
                model = load_denoiser(source, base=base, dtype=torch.float32)
            seconds = time.perf_counter() - started
            del model
        rows.append((fmt.name, size, None if peak.mib is None else peak.mib / size, seconds))
        progress(len(rows), len(formats), "")
    return rows
