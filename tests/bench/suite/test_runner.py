"""What must not end a run in a traceback, nor leave its processes behind."""

import json
import signal
import subprocess
import sys
import time

import pytest
import yaml
from _results import row as written
from _shipped import ASSETS
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from typer.testing import CliRunner

from aiao_diffusers import WatermarkRecord, verify
from aiao_diffusers.bench.suite import results
from aiao_diffusers.bench.suite.marks import iter_marks
from aiao_diffusers.bench.suite.runner import run_suite, unexpected
from aiao_diffusers.bench.suite.tables import table
from aiao_diffusers.cli import app
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.errors import ConfigError, DataError, ResultsError


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke suite, killed after its second verdict, refused a second run meanwhile, then finished."""
    out = tmp_path_factory.mktemp("smoke")
    command = [sys.executable, "-m", "aiao_diffusers.cli", "bench", "run", "smoke", "-o", out, "--assets", ASSETS]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as running:
        file, limit = out / results.FILE, time.time() + 300
        while not file.exists() or file.read_bytes().count(b'"kind": "cell"') < 2:
            assert running.poll() is None and time.time() < limit
            time.sleep(0.05)
        with pytest.raises(ResultsError, match="in use by another run"):
            run_suite("smoke", out, assets=ASSETS)
        running.send_signal(signal.SIGKILL)
    early = results.read(out)
    rows = run_suite("smoke", out, assets=ASSETS, jobs=2)
    assert 2 <= sum(row["kind"] == "cell" for row in early) < 5
    assert results.read(out)[: len(early)] == early  # nothing is measured or written twice
    return out, rows


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rows = []
    for number, colour in enumerate(("red", "green", "blue", "black")):
        Image.new("RGB", (48, 40), colour).save(folder / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"{colour} square", "kind": colour})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(path, **changes):
    suite = {
        "name": "own",
        "models": {"m": {"path": "base", "data": "pictures"}},
        "data": {"some": {"folder": "pictures", "where": {"kind": ["red", "blue"]}}},
        "marks": {
            "likeness": {"method": "likeness"},
            "barely": {"method": "aiao", "steps": 1, "batch_size": 1, "bank_size": 1, "keys": 1},
        },
        "attacks": [{"attack": "noise", "std": 0.05}],
        "seeds": [5],
        "trials": 1,
        "quality": {"samples": 4, "images": 2, "steps": 1, "prompts": "prompts.txt"},
    }
    path.write_text(yaml.safe_dump(suite | changes))
    (path.parent / "prompts.txt").write_text("red square\nblue square\n")
    return path


def test_what_is_not_as_expected():
    good = written("none", {}, 0, -9.0, expect="verified")
    lost = written("none", {}, 1, -1.0, expect="verified")
    false = written("none", {}, 2, -9.0, base=-9.0)  # whatever is expected of its row
    failed = written("none", {}, 3, None, verdict="failed")
    kin = written("none", {}, 4, -9.0, base=-9.0)
    kin["controls"]["base"]["log10_p"] = None  # likeness: no p-value, no promise
    open_end = written("none", {}, 5, -1.0)
    assert unexpected([good, lost, false, failed, kin, open_end, {"kind": "reference"}]) == [lost, false, failed]


@pytest.mark.slow
class TestSmoke:
    def test_every_verdict_is_as_expected(self, smoke):
        _, rows = smoke
        cells = [row for row in rows if row["kind"] == "cell"]
        assert len(cells) == len({row["id"] for row in rows}) - 1 == 5 and unexpected(rows) == []
        for row in cells:
            kept = row["attack"] != "merge"  # a merge that keeps none of the marked model
            assert row["verdict"] == ("verified" if kept else "not_verified")
            assert (row["log10_p"] < -30) == kept
            assert {c["verdict"] for c in row["controls"].values()} == {"not_verified"}
            assert row["quality"]["loss_owner"] > 0 and row["seconds"]["attack"] >= 0
            assert row["hashes"]["suspect"] != row["hashes"]["marked"] or row["attack"] == "none"

    def test_a_wrong_expectation_is_reported(self, smoke):
        _, rows = smoke
        wrong = [row | {"expect": "not_verified"} for row in rows if row.get("attack") == "none"]
        assert unexpected(wrong) == wrong
        false = [json.loads(json.dumps(row)) for row in rows if row.get("attack") == "none"]
        false[0]["controls"]["base"]["verdict"] = "verified"
        assert unexpected(false) == false

    def test_its_marks_are_found_again(self, smoke, tmp_path):
        out, rows = smoke
        (one,) = iter_marks("smoke", out, assets=ASSETS)
        assert weights_sha256(one.denoiser) == next(row["hashes"]["marked"] for row in rows if row["kind"] == "cell")
        record = WatermarkRecord.load(one.folder)
        assert record.belongs_to(one.key) and verify(one.denoiser, one.key, record=record).verified
        with pytest.raises(DataError, match="no marks of suite smoke"):
            next(iter_marks("smoke", tmp_path, assets=ASSETS))

    def test_table_and_curves_by_the_command(self, smoke, tmp_path):
        out, _ = smoke
        words = ["bench", "table", str(out), "--section", "verdicts", "--curves", str(tmp_path)]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0 and "| quantise (bits 4) | 1/1 |" in done.stdout
        found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
        assert found["markdown"].rstrip() == done.stdout.rstrip() and str(tmp_path / "cost.png") in found["curves"]
        assert (tmp_path / "cost.png").exists()
        assert "SHA-256 of marked weights" in table(out)


@pytest.mark.slow
class TestOwnModelAndPictures:
    def test_folder_of_pictures_and_model_by_option(self, pictures, tmp_path):
        """The path a user's own data takes: embed, attack and measure on a folder; one step of training marks nothing."""
        config = write(tmp_path / "own.yaml", data={"x": "absent"}, models={"x": {"path": "absent", "data": "absent"}})
        model = str(ASSETS / "base")
        rows = run_suite(config, tmp_path / "out", assets=ASSETS, model=model, data=str(pictures))
        by_mark = {row["mark"]: row for row in rows if row["kind"] == "cell"}
        assert by_mark["likeness"]["verdict"] == "verified" and by_mark["likeness"]["log10_p"] is None
        assert by_mark["likeness"]["controls"]["base"]["verdict"] == "verified"  # its false claim on the ancestor
        assert by_mark["barely"]["verdict"] == "not_verified"
        assert all({"cmmd", "clip_score"} <= set(row["quality"]) for row in rows)
        options = {"assets": ASSETS, "model": model, "data": str(pictures)}
        assert run_suite(config, tmp_path / "out", **options) == rows  # nothing left to do
        Image.new("RGB", (48, 40), "white").save(pictures / "3.png")
        write(config, marks={"likeness": {"method": "likeness"}}, quality={"samples": 4})
        assert not {r["id"] for r in rows} & {r["id"] for r in run_suite(config, tmp_path / "out", **options)}

    def test_unconditional_denoiser_of_pixels(self, pictures, tmp_path):
        unet = tiny_unconditional(block_out_channels=(16, 16), attention_head_dim=8)
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
        marks = {
            "barely": {"method": "aiao", "steps": 1, "batch_size": 1, "bank_size": 1, "in_sites": 1, "out_sites": 1}
        }
        config = write(tmp_path / "own.yaml", marks=marks, quality={"samples": 4})
        (row,) = [
            row
            for row in run_suite(config, tmp_path / "out", model=str(tmp_path / "ddpm"), data=str(pictures))
            if row["kind"] == "cell"
        ]
        assert row["verdict"] == "not_verified" and row["evals"] > 0 and row["quality"]["loss_data"] > 0
        config = write(tmp_path / "own.yaml", marks={"peer": {"method": "watermarkdm", "steps": 1}})
        with pytest.raises(ConfigError, match="text-to-image"):
            run_suite(config, tmp_path / "out", model=str(tmp_path / "ddpm"), data=str(pictures))

    def test_missing_folder_is_found_before_anything_is_computed(self, pictures, tmp_path):
        for change in (
            {"data": {"some": "no-such-folder"}},
            {"models": {"m": {"path": "nowhere", "data": "pictures"}}},
        ):
            with pytest.raises(DataError, match="no-such-folder|nowhere"):
                run_suite(write(tmp_path / "own.yaml", **change), tmp_path / "out", assets=ASSETS)
        wrong = {"some": {"folder": "pictures", "where": {"kindd": ["red"]}}}
        with pytest.raises(DataError, match="kindd"):
            run_suite(write(tmp_path / "own.yaml", data=wrong), tmp_path / "out", assets=ASSETS)
        assert not (tmp_path / "out" / results.FILE).exists() and not (tmp_path / "out" / "marks").exists()

    def test_the_command_says_what_is_wrong(self, tmp_path):
        words = ["bench", "run", "-o", str(tmp_path / "out")]
        assert isinstance(CliRunner().invoke(app, [*words, str(tmp_path / "none.yaml")]).exception, ConfigError)
        assert CliRunner().invoke(app, words).exit_code == 2
