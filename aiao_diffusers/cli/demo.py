"""`aiao demo`: verdicts on the shipped model, its descendants and their controls."""

import base64
import tempfile
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from markupsafe import Markup
from PIL import Image

from ..bench.attacks.finetune import lora as train_lora
from ..denoiser.inputs import LatentData
from ..embedding.config import EmbedConfig
from ..errors import MissingExtraError
from ..mark.key import WatermarkKey
from ..mark.record import WatermarkRecord
from ..pipeline import WatermarkedStableDiffusionPipeline, save_new
from ..verification.report import VerificationReport
from ..verification.report_html import HTML, document, section
from ..verification.verify import verify
from ._assets import ASSETS, need_assets
from ._output import out, write_whole


PROMPTS = ["cat face", "red apple", "evergreen tree", "house building"]
COLUMNS = ("suspect", "expected", "verdict", "log10 p", "bits")
TITLE = "Who carries the mark?"
SUMMARY = """<h1>Who carries the mark?</h1>
<table><tr>{% for name in columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
<p>{{ legend }}</p><p><img alt="same-seed images" src="data:image/png;base64,{{ images }}"></p>
{% for name, part in sections %}<details><summary>{{ name }}</summary>{{ part }}</details>
{% endfor %}"""
FULL_STEPS = 300  # fewer than the default: fresh verdicts within 12 minutes on two slow cores
STEPS_A_NOTE = 25  # how often the full demo says where it is, in optimiser steps


def demo(
    full: Annotated[bool, typer.Option(help="New key, fresh embedding, fresh LoRA (minutes).")] = False,
    assets: Annotated[Path, typer.Option(help="The example's folder.")] = ASSETS,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("aiao-demo"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdicts as a JSON list.")] = False,
) -> None:
    """Verdicts with their controls; exit code 1 when one differs from what is expected."""
    need_assets(assets)
    started = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        folders = _fresh(assets, Path(scratch)) if full else _shipped(assets)
        rows, reports = _verdicts(**folders)
        _report(rows, reports, folders, output)
    right = all(row["verdict"] == row["expected"] for row in rows)
    if as_json:
        out.json(rows)
    else:
        out.table(TITLE, list(COLUMNS), [_cells(row) for row in rows])
        out.note(f"{time.time() - started:.0f} s; reports with pictures in '{output}'")
    raise typer.Exit(0 if right else 1)


def _cells(row: dict[str, Any]) -> list[str]:
    """A verdict as `COLUMNS`; one that is not testable has no numbers."""
    numbers = [row["log10_p"], row["bit_accuracy"]]
    shown = ["" if number is None else f"{number:.{digits}f}" for number, digits in zip(numbers, (1, 3), strict=True)]
    return [row["name"], row["expected"], row["verdict"], *shown]


def _shipped(assets: Path) -> dict[str, Any]:
    with warnings.catch_warnings():
        # git keeps no file modes, and this key is public on purpose.
        warnings.simplefilter("ignore")
        key = WatermarkKey.load(assets / "demo.key")
    return {
        "key": key,
        "base": assets / "base",
        "marked": assets / "marked",
        "lora": assets / "lora",
        "finetuned": assets / "finetuned",
    }


def _fresh(assets: Path, scratch: Path) -> dict[str, Any]:
    key = WatermarkKey.generate("Demo")
    pipe = WatermarkedStableDiffusionPipeline.from_pretrained(assets / "base")

    def progress(step: int, row: dict[str, float]) -> None:
        if step % STEPS_A_NOTE == 0:
            out.note(f"embedding, step {step}: response loss {row['resp']:.3f}")

    report = pipe.embed(key, assets / "latents" / "noto.safetensors", EmbedConfig(steps=FULL_STEPS), progress)
    out.note(f"noise-prediction MSE against the clean twin: {report.price:.2%} of its loss")
    save_new(pipe, scratch / "marked")
    style = LatentData.load(assets / "latents" / "twemoji.safetensors")
    train_lora(pipe.unet, style, pipe.scheduler, scratch / "lora", rank=8, steps=100, lr=1e-3)
    return {
        "key": key,
        "base": assets / "base",
        "marked": scratch / "marked",
        "lora": scratch / "lora",
        "finetuned": None,
    }


def _verdicts(
    key: WatermarkKey, base: Path, marked: Path, lora: Path, finetuned: Path | None
) -> tuple[list[dict[str, Any]], list[VerificationReport]]:
    record = WatermarkRecord.load(marked)
    questions: list[tuple[str, str, Any, WatermarkKey, Any]] = [
        ("marked model", "verified", marked, key, None),
        ("its LoRA", "verified", lora, key, marked),
        ("its full fine-tune", "verified", finetuned, key, None),
        ("control: base", "not_verified", base, key, None),
        ("control: same LoRA on base", "not_verified", lora, key, base),
        ("control: wrong key", "not_verified", marked, key.child("wrong"), None),
    ]
    rows, reports = [], []
    for name, expected, suspect, asked, under in questions:
        if suspect is None:
            continue
        report = verify(suspect, asked, base=under, record=record)
        reports.append(report)
        rows.append(
            {
                "name": name,
                "expected": expected,
                "verdict": report.verdict,
                "log10_p": report.log10_p,
                "bit_accuracy": report.bit_accuracy,
            }
        )
    return rows, reports


def _report(
    rows: list[dict[str, Any]], reports: list[VerificationReport], folders: dict[str, Any], output: Path
) -> None:
    output.mkdir(parents=True, exist_ok=True)
    pictures = [
        _pictures(folders["base"]),
        _pictures(folders["marked"]),
        _pictures(folders["marked"], folders["lora"]),
    ]
    side = 128
    sheet = Image.new("RGB", (side * len(PROMPTS), side * len(pictures)), "white")
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x * side, y * side))
    sheet.save(output / "images.png")
    lines = [f"# {TITLE}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    legend = "Same seeds; rows: base, marked, marked with the LoRA. Prompts: " + ", ".join(PROMPTS) + "."
    lines += ["", legend, "", "![same-seed images](images.png)", ""]
    write_whole(output / "report.md", "\n".join(lines))
    try:
        sections = [(row["name"], section(report)) for row, report in zip(rows, reports, strict=True)]
    except MissingExtraError as error:
        out.note(f"no report.html: {error}")
        return
    images = base64.b64encode((output / "images.png").read_bytes()).decode()
    cells = [_cells(row) for row in rows]
    body = HTML.from_string(SUMMARY).render(
        columns=COLUMNS, rows=cells, legend=legend, images=images, sections=sections
    )
    write_whole(output / "report.html", document(TITLE, Markup(body)))


def _pictures(folder: Path, lora: Path | None = None) -> list[Image.Image]:
    pipe = WatermarkedStableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    generators = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    return list(pipe(PROMPTS, num_inference_steps=20, guidance_scale=4.0, generator=generators).images)
