"""`aiao demo`: nine questions to the shipped models, their answers and a report with pictures."""

import base64
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ..errors import MissingExtraError
from ..files.atomic import write_text
from ..files.text import markdown_table
from ._assets import ASSETS, need_assets
from ._options import AsJson, Quiet
from ._output import out
from ._progress import Step, progress
from .embed import losses


if TYPE_CHECKING:
    from PIL.Image import Image

    from ..mark.key import WatermarkKey
    from ..verification.report import VerificationReport


PROMPTS = ["cat face", "red apple", "evergreen tree", "house building"]
COLUMNS = ("suspect", "expected", "verdict", "log10 p", "bits")
TITLE = "Who carries the mark?"
LEGEND = "Same seeds; rows: base, marked, marked with the LoRA. Prompts: " + ", ".join(PROMPTS) + "."
SHEETS = 3  # rows of images
FULL_STEPS = 300  # fewer than the default: fresh verdicts within 12 minutes on two slow cores


class Question(NamedTuple):
    """What is asked of which suspect; `suspect` and `base` are names of the demo's folders."""

    name: str
    expected: str
    suspect: str
    base: str | None = None
    right_key: bool = True


QUESTIONS = (
    Question("marked model", "verified", "marked"),
    Question("its LoRA", "verified", "lora", base="marked"),
    Question("its full fine-tune", "verified", "finetuned"),
    Question("control: base", "not_verified", "base"),
    Question("control: same LoRA on base", "not_verified", "lora", base="base"),
    Question("control: wrong key", "not_verified", "marked", right_key=False),
    Question("what its LoRA was trained on", "verified", "lora"),
    Question("control: the same LoRA trained on base", "not_verified", "lora of base"),
    Question("control: the LoRA, wrong key", "not_verified", "lora", right_key=False),
)


def demo(
    full: Annotated[bool, typer.Option(help="New key, fresh embedding, fresh LoRA (minutes).")] = False,
    assets: Annotated[Path, typer.Option(help="The example's folder.")] = ASSETS,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the report.")] = Path("aiao-demo"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Verdicts on the shipped model, its descendants and their controls."""
    need_assets(assets)
    started, quiet = time.time(), quiet or as_json
    with tempfile.TemporaryDirectory() as scratch:
        folders = _fresh(assets, Path(scratch), quiet) if full else _shipped(assets)
        with progress("reading and drawing", len(QUESTIONS) + SHEETS, quiet=quiet) as step:
            rows, reports = _verdicts(step, **folders)
            _report(rows, reports, folders, output, step)
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
    from ..mark.key import WatermarkKey

    with warnings.catch_warnings():
        # git keeps no file modes, and this key is public on purpose.
        warnings.simplefilter("ignore")
        key = WatermarkKey.load(assets / "demo.key")
    return {
        "key": key,
        "base": assets / "base",
        "marked": assets / "marked",
        "lora": assets / "lora",
        "lora_of_base": assets / "lora_of_base",
        "finetuned": assets / "finetuned",
    }


def _fresh(assets: Path, scratch: Path, quiet: bool) -> dict[str, Any]:
    from ..bench.attacks.finetune import lora as train_lora
    from ..denoiser.inputs import LatentData
    from ..embedding.config import EmbedConfig
    from ..mark.key import WatermarkKey
    from ..pipeline import WatermarkedStableDiffusionPipeline, save_new

    key = WatermarkKey.generate("Demo")
    pipe = WatermarkedStableDiffusionPipeline.from_pretrained(assets / "base")
    data, config = assets / "latents" / "noto.safetensors", EmbedConfig(steps=FULL_STEPS)
    with progress("embedding", FULL_STEPS, quiet=quiet) as step:
        report = pipe.embed(key, data, config, lambda number, row: step(number, losses(row)))
    out.note(f"noise-prediction MSE against the clean twin: {report.price:.2%} of its loss")
    save_new(pipe, scratch / "marked")
    style = LatentData.load(assets / "latents" / "twemoji.safetensors")
    with progress("training a LoRA", quiet=quiet):
        train_lora(pipe.unet, style, pipe.scheduler, scratch / "lora", rank=8, steps=100, lr=1e-3)
    twin = WatermarkedStableDiffusionPipeline.from_pretrained(assets / "base")
    with progress("training the same LoRA on the base", quiet=quiet):
        train_lora(twin.unet, style, twin.scheduler, scratch / "lora_of_base", rank=8, steps=100, lr=1e-3)
    return {
        "key": key,
        "base": assets / "base",
        "marked": scratch / "marked",
        "lora": scratch / "lora",
        "lora_of_base": scratch / "lora_of_base",
        "finetuned": None,
    }


def _verdicts(
    step: Step,
    key: "WatermarkKey",
    base: Path,
    marked: Path,
    lora: Path,
    lora_of_base: Path,
    finetuned: Path | None,
) -> "tuple[list[dict[str, Any]], list[VerificationReport]]":
    from ..mark.record import WatermarkRecord
    from ..verification.verify import verify

    record = WatermarkRecord.load(marked)
    places = {"base": base, "marked": marked, "lora": lora, "lora of base": lora_of_base, "finetuned": finetuned}
    rows, reports = [], []
    for number, question in enumerate(QUESTIONS):
        step(number, question.name)
        suspect = places[question.suspect]
        if suspect is None:
            continue
        asked = key if question.right_key else key.child("wrong")
        report = verify(suspect, asked, base=places.get(question.base or ""), record=record)
        reports.append(report)
        rows.append(
            {
                "name": question.name,
                "expected": question.expected,
                "verdict": report.verdict,
                "log10_p": report.log10_p,
                "bit_accuracy": report.bit_accuracy,
            }
        )
    return rows, reports


def _report(
    rows: list[dict[str, Any]],
    reports: "list[VerificationReport]",
    folders: dict[str, Any],
    output: Path,
    step: Step,
) -> None:
    """`report.md`, `images.png` and, where plots can be drawn, `report.html`."""
    output.mkdir(parents=True, exist_ok=True)
    _sheet(folders, step).save(output / "images.png")
    table = markdown_table(COLUMNS, map(_cells, rows))
    lines = [f"# {TITLE}", "", table, "", LEGEND, "", "![same-seed images](images.png)", ""]
    write_text(output / "report.md", "\n".join(lines))
    try:
        page = _page(rows, reports, output / "images.png")
    except MissingExtraError as error:
        out.note(f"no report.html: {error}")
        return
    write_text(output / "report.html", page)


def _page(rows: list[dict[str, Any]], reports: "list[VerificationReport]", sheet: Path) -> str:
    from ..files.html import render_html
    from ..verification.report_html import section

    return render_html(
        "cli/demo.html.jinja",
        title=TITLE,
        columns=COLUMNS,
        rows=[_cells(row) for row in rows],
        legend=LEGEND,
        images=base64.b64encode(sheet.read_bytes()).decode(),
        sections=[(row["name"], section(report)) for row, report in zip(rows, reports, strict=True)],
    )


def _sheet(folders: dict[str, Any], step: Step) -> "Image":
    """The prompts' images in columns: of the base, of the marked model, and of that with the LoRA."""
    from PIL import Image

    side, models = 128, [(folders["base"], None), (folders["marked"], None), (folders["marked"], folders["lora"])]
    sheet = Image.new("RGB", (side * len(PROMPTS), side * SHEETS), "white")
    for y, (folder, lora) in enumerate(models):
        step(len(QUESTIONS) + y, "images")
        for x, picture in enumerate(_pictures(folder, lora)):
            sheet.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x * side, y * side))
    return sheet


def _pictures(folder: Path, lora: Path | None = None) -> "list[Image]":
    import torch

    from ..pipeline import WatermarkedStableDiffusionPipeline

    pipe = WatermarkedStableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    if lora is not None:
        pipe.load_lora_weights(lora)
    generators = [torch.Generator().manual_seed(i) for i in range(len(PROMPTS))]
    return list(pipe(PROMPTS, num_inference_steps=20, guidance_scale=4.0, generator=generators).images)
