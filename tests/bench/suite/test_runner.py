"""What must not end a run in a traceback, nor leave its processes behind."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from _shipped import ASSETS
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from typer.testing import CliRunner

from aiao_diffusers import LatentData, WatermarkKey, WatermarkRecord, verify
from aiao_diffusers.bench.suite import results
from aiao_diffusers.bench.suite.marks import iter_marks
from aiao_diffusers.bench.suite.runner import run_suite, unexpected
from aiao_diffusers.bench.suite.tables import table
from aiao_diffusers.cli import app
from aiao_diffusers.denoiser.hashes import weights_sha256
from aiao_diffusers.errors import ConfigError, DataError, ResultsError
from aiao_diffusers.files.jsonl import append_line


@pytest.fixture
def own(tmp_path):
    """A suite on a miniature model of 8x8 pixels; `own(**changes)` writes it anew and returns its path."""
    DDPMPipeline(tiny_unconditional(), DDPMScheduler()).save_pretrained(tmp_path / "ddpm")
    LatentData(torch.randn(4, 3, 8, 8), {}).save(tmp_path / "a.safetensors")
    LatentData(torch.randn(4, 4, 8, 8), {}).save(tmp_path / "other.safetensors")

    def write(**changes):
        suite = {
            "name": "own",
            "models": {"m": {"path": "ddpm", "data": "a.safetensors"}},
            "data": {"d": "a.safetensors"},
            "marks": {"kin": {"method": "likeness"}},
            "attacks": [{"attack": "noise", "std": 0.05}],
            "seeds": [0],
            "trials": 1,
            "quality": {"samples": 4},
        }
        (tmp_path / "own.yaml").write_text(yaml.safe_dump(suite | changes))
        return tmp_path / "own.yaml"

    return write


def row(attack, hyper, seed, log10_p, *, mark="ours", passed=8, base=-0.4, verdict=None, **changes):
    found = verdict or ("verified" if log10_p <= -6 else "not_verified")
    control = {"verdict": "verified" if base <= -6 else "not_verified", "log10_p": base}
    stamp = {"format": results.FORMAT, "versions": results.versions(), "suite": "s", "alpha": 1e-6}
    what = {"model": "m", "data": "d", "mark": mark, "attack": attack, "hyper": hyper, "seed": seed, "key": 0}
    values = {"verdict": found, "log10_p": log10_p, "bits": 0.9, "passed": passed, "trials": 8, "strength": None}
    rest = {
        "controls": {"base": control, "wrong_key": {"verdict": "not_verified", "log10_p": -0.1}},
        "quality": {"loss_owner": 0.11, "base_loss_owner": 0.1},
        "hashes": {"base": "b" * 64, "marked": "c" * 64, "suspect": "d" * 64},
        "seconds": {"attack": 60.0},
        "finished": "2026-01-01T00:00:00Z",
        "expect": None,
    }
    identity = f"{mark}-{attack}-{sorted(hyper.items())}-{seed}"
    return stamp | {"kind": "cell", "id": identity} | what | values | rest | changes


@pytest.fixture
def folder(tmp_path):
    rows = [row("none", {}, seed, -100.0 - seed) for seed in range(3)]
    for amount, p in ((0.3, -50.0), (0.7, -2.0)):
        hyper = {"amount": amount, "structured": False}
        rows += [row("prune", hyper, seed, p - seed, passed=4, strength=amount) for seed in range(3)]
    for line in rows:
        append_line(tmp_path / results.FILE, line)
    return tmp_path


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


def test_one_impossible_value_does_not_cost_the_other_cells(own, tmp_path):
    attacks = [{"attack": "finetune", "steps": 1, "lr": [-1.0]}, {"attack": "noise", "std": 0.05}]
    rows = run_suite(own(attacks=attacks), tmp_path / "out")
    found = {row["attack"]: row for row in rows if row["kind"] == "cell"}
    assert found["finetune"]["verdict"] == "failed" and "learning rate" in found["finetune"]["error"]
    assert found["noise"]["verdict"] == "verified"


def test_what_a_killed_run_left_half_made_goes(own, tmp_path):
    left = tmp_path / "out" / "marks" / ".partial-x"
    left.mkdir(parents=True)
    run_suite(own(), tmp_path / "out")
    assert not left.exists() and any(left.parent.iterdir())


@pytest.mark.parametrize(
    "change, error, match",
    [
        ({"data": {"d": "other.safetensors"}}, DataError, "do not fit 'ddpm'"),
        ({"data": {"d": {"folder": "empty"}}}, DataError, "not a readable folder"),
        ({"models": {"m": {"path": "a.safetensors", "data": "a.safetensors"}}}, DataError, "no pipeline folder"),
        ({"models": {"m": {"path": "empty", "data": "a.safetensors"}}}, DataError, "no pipeline folder"),
    ],
)
def test_models_and_data_are_opened_before_anything_is_made(own, tmp_path, change, error, match):
    (tmp_path / "empty").mkdir()
    with pytest.raises(error, match=match):
        run_suite(own(**change), tmp_path / "out")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {".lock"}


def test_a_marked_folder_of_another_architecture(own, tmp_path):
    DDPMPipeline(tiny_unconditional(layers_per_block=2), DDPMScheduler()).save_pretrained(tmp_path / "marked")
    WatermarkKey.generate("Owner").save(tmp_path / "demo.key")
    marks = {"shipped": {"method": "aiao", "marked": "marked", "key": "demo.key", "keys": 1}}
    with pytest.raises(ConfigError, match="another architecture"):
        run_suite(own(marks=marks), tmp_path / "out")


def test_what_is_not_as_expected():
    good = row("none", {}, 0, -9.0, expect="verified")
    lost = row("none", {}, 1, -1.0, expect="verified")
    false = row("none", {}, 2, -9.0, base=-9.0)  # whatever is expected of its row
    failed = row("none", {}, 3, None, verdict="failed")
    kin = row("none", {}, 4, -9.0, base=-9.0)
    kin["controls"]["base"]["log10_p"] = None  # likeness: no p-value, no promise
    open_end = row("none", {}, 5, -1.0)
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
