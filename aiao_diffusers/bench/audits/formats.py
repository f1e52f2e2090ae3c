"""The table of formats: what each is recognised as, whether it loads, and what the verdict says of it.

Every adapter row is the same change of the same denoiser, that of the example's LoRA with convolutions and varying ranks
added; every whole model is that change fused in. The oracle is the denoiser whose weights were patched directly.
"""

import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from ...errors import AIAOError
from ...files.peak import Peak
from ...files.safetensors_header import load_tensors
from ...files.text import markdown_table, short
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
from .format_files import ADAPTERS, NO_FINE_TUNE, Change, Factors, Format, State, whole_models


CONVOLUTIONS = ("down_blocks.0.resnets.0.conv1", "up_blocks.1.resnets.0.conv_shortcut", "conv_in")
MIB = 2**20
COLUMNS = (
    *("format", "detected", "loads", "modules", "oracle error"),
    *("on the marked model", "on the clean model", "s", "peak MiB"),
)


@dataclass(frozen=True)
class Row:
    """One format.

    Args:
        format: its name. kind: as detected. loads: whether a denoiser came of it. refusal: the error where none did.
        modules, delta_norm: what an adapter changed.
        oracle_error: largest difference of the noise prediction from that of directly patched weights, as a share of the
            largest difference that the change makes; 1 would be an adapter that did not load.
        marked, clean: verdict on the marked and on the clean model with this file, with log10 p.
        seconds, peak_mib: of loading it. peak_ratio: peak_mib over the denoiser's size as float32; None where the
            system does not tell. as_expected: kind, error and both verdicts are those that the format stands for.
    """

    format: str
    kind: str
    loads: bool
    refusal: str | None
    modules: int | None
    delta_norm: float | None
    oracle_error: float | None
    marked: str
    marked_log10_p: float | None
    clean: str
    clean_log10_p: float | None
    seconds: float
    peak_mib: float | None
    peak_ratio: float | None
    as_expected: bool


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


def _predict(denoiser: nn.Module, record: WatermarkRecord) -> torch.Tensor:
    row = record.bank.take(torch.tensor([0]))
    noise = torch.randn(row.latents.shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([record.timesteps // 2])
    with torch.no_grad():
        sample = record.noised(row.latents, noise, t)
        return denoiser(sample, timestep=t, **row.keywords(torch.device("cpu"), torch.float32)).sample


@contextmanager
def _open_fine_tune(source: Path, base: nn.Module, weight_name: str | None) -> Iterator[tuple[nn.Module, Any]]:
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
        self.changes = {}
        for name, folder in (("marked", "marked"), ("clean", "base")):
            denoiser = load_denoiser(assets / folder, dtype=torch.float32)
            self.changes[name] = change_of(denoiser, lora, seed)

    def row(self, fmt: Format, folder: Path) -> Row:
        """Write the format under `folder`, load it, compare it with the oracle, and verify both models with it."""
        sources = {name: fmt.write(change, folder / name) for name, change in self.changes.items()}
        source, change = sources["marked"], self.changes["marked"]
        kind, refusal, adapter, error = _kind(source, fmt.weight_name), None, None, None
        states = (Change(change.base, {}).merged(), fmt.merged(change))
        bare, wanted = (_predict(_copy(change, state), self.record) for state in states)
        peak, started = Peak(), time.perf_counter()
        try:
            with peak.measured():
                context = _open_fine_tune(source, change.base, fmt.weight_name)
                denoiser, adapter = context.__enter__()
            seconds = time.perf_counter() - started
            try:
                mine = _predict(denoiser, self.record)
                error = float((mine - wanted).abs().max() / (wanted - bare).abs().max())
            finally:
                context.__exit__(None, None, None)
        except AIAOError as reason:
            seconds, refusal = time.perf_counter() - started, f"{type(reason).__name__}: {reason}"
        verdicts = {name: self._verdict(sources[name], self.changes[name], fmt) for name in sources}
        size = sum(p.numel() * 4 for p in change.base.parameters()) / MIB
        return Row(
            format=fmt.name,
            kind=kind,
            loads=refusal is None,
            refusal=None if refusal is None else short(refusal, 300),
            modules=getattr(adapter, "modules", None),
            delta_norm=getattr(adapter, "delta_norm", None),
            oracle_error=error,
            marked=verdicts["marked"][0],
            marked_log10_p=verdicts["marked"][1],
            clean=verdicts["clean"][0],
            clean_log10_p=verdicts["clean"][1],
            seconds=seconds,
            peak_mib=peak.mib,
            peak_ratio=None if peak.mib is None else peak.mib / size,
            as_expected=_meets_expectation(fmt, kind, refusal, error, verdicts),
        )

    def _verdict(self, source: Path, change: Change, fmt: Format) -> tuple[str, float | None]:
        try:
            report = verify(
                source,
                self.key,
                base=change.base,
                record=self.record,
                weight_name=fmt.weight_name,
                trials=self.trials,
                seed=self.seed,
            )
        except AIAOError as error:
            return type(error).__name__, None
        return report.verdict, report.log10_p


def _kind(source: Path, weight_name: str | None) -> str:
    try:
        return detect(source, weight_name).kind
    except AIAOError as error:
        return type(error).__name__


def _copy(change: Change, state: State) -> nn.Module:
    """A denoiser of its own that holds `state`."""
    base: Any = change.base
    model = type(base).from_config(base.config)
    model.load_state_dict(state)
    return model.eval()


def _meets_expectation(
    fmt: Format, kind: str, refusal: str | None, error: float | None, verdicts: dict[str, tuple[str, float | None]]
) -> bool:
    marked, clean = verdicts["marked"][0], verdicts["clean"][0]
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
    formats = (*ADAPTERS, *whole_models(), *NO_FINE_TUNE)
    rows: list[Row] = []
    for fmt in formats:
        with tempfile.TemporaryDirectory() as folder:
            for name in bench.changes:
                (Path(folder) / name).mkdir()
            rows.append(bench.row(fmt, Path(folder)))
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


def table(rows: Iterable[Row]) -> str:
    """Rows as a Markdown table."""
    lines = []
    for row in rows:
        verdicts = []
        for verdict, log10_p in ((row.marked, row.marked_log10_p), (row.clean, row.clean_log10_p)):
            verdicts.append(verdict if log10_p is None else f"{verdict} ({log10_p:.1f})")
        error = "" if row.oracle_error is None else f"{row.oracle_error:.1e}"
        peak = "" if row.peak_mib is None else f"{row.peak_mib:.0f}"
        told = (row.format, row.kind, "yes" if row.loads else "no", str(row.modules or ""), error)
        lines.append((*told, *verdicts, f"{row.seconds:.2f}", peak))
    return markdown_table(COLUMNS, lines) + "\n"


def memory_table(rows: Iterable[tuple[str, float, float | None, float]]) -> str:
    """What `memory` returns as a Markdown table."""
    cells = (
        (name, f"{size:.0f}", "" if ratio is None else f"{ratio:.2f}", f"{seconds:.1f}")
        for name, size, ratio, seconds in rows
    )
    return markdown_table(("format", "denoiser MiB", "peak over it", "s"), cells) + "\n"
