"""A scan over real HTTP: every kind of suspect, faults, a kill in the middle, budgets. The large one is an example."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from _carried import gradient_lora
from _disguises import conditional, latents
from _tiny import tiny_unet, widened
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save

from aiao_diffusers import WatermarkKey, WatermarkRecord, scan, verify
from aiao_diffusers.bench.audits.format_files import Change, whole_models
from aiao_diffusers.errors import ConfigError, KeyMismatchError, OutputExistsError, ResultsError
from aiao_diffusers.formats.checkpoint import load_denoiser
from aiao_diffusers.formats.packing import QUANTO_MAP
from aiao_diffusers.lineage.carrier import add_carrier
from aiao_diffusers.mark.carried import carried
from aiao_diffusers.verification.plan import ReadingPlan
from tests.hub_server import Cut, HubServer, RateLimit, ServerError, Slow
from tests.samples import card
from tests.suspects import ASSETS, BASE, LORA, UNET, Suspect, folder, kohya, lora, mistakes, population, publish


pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
KEY = WatermarkKey(bytes(range(32)), "Demo")
FEW = ("lora-0", "lora-copy", "tuned-0", "copy", "clean", "small-unet", "pickle", "cut", "nan", "grandchild", "gated")


def few(*names: str) -> list[Suspect]:
    return [suspect for suspect in population() if suspect.repo.partition("/")[2] in (names or FEW)]


def named(suspects: list[Suspect]) -> list[str]:
    return [suspect.repo for suspect in suspects if suspect.named]


def test_every_kind_is_classified_rightly(hub: HubServer, tmp_path: Path) -> None:
    suspects = publish(hub, population())
    kept = tmp_path / "out" / "downloads" / "mine.txt"  # whatever the folder held before is its user's
    kept.parent.mkdir(parents=True)
    kept.write_text("mine")
    left = tmp_path / "out" / ".aiao-downloads-killed"
    left.mkdir()
    report = scan(BASE, KEY, output=tmp_path / "out", repos=named(suspects), workers=2)
    rows = report.to_dict()["rows"]
    assert mistakes(rows, suspects) == []
    assert report.counts == {"verified": 15, "not_verified": 3, "not_testable": 23}

    smallest = [min(row["log10_p"] or 0.0, (row["lineage_reading"] or {}).get("log10_p") or 0.0) for row in rows]
    assert smallest == sorted(smallest) and smallest[0] < -20
    found = {row["repo"].partition("/")[2]: row for row in rows}
    assert all(
        row["commit"] == hub.sha(row["repo"]) for row in rows if row["repo"] != "nobody/nothing" and row["commit"]
    )
    assert found["tuned-0"]["proves"] == "descent" and found["lora-0"]["proves"] == "carries"
    assert found["clean"]["proves"] == "nothing"
    # identical tensors are named without a forward, however the file was written
    for name in ("copy", "copy-resaved"):
        assert (found[name]["copy_of"], found[name]["distance"], found[name]["denoiser_evals"]) == (BASE, 0.0, 0)
    assert found["copy"]["bytes"] == 0 and found["copy-resaved"]["bytes"] > 0
    assert 0 < found["lora-0"]["distance"] < found["lora-2"]["distance"] < found["scrambled"]["distance"]
    assert any("declared for user0/tuned-0" in text for text in found["grandchild"]["warnings"])

    # the base came once; what cannot be tested cost no weights
    base_bytes = (ASSETS / "marked" / "unet" / "diffusion_pytorch_model.safetensors").stat().st_size
    assert hub.bytes_sent("acme/sd/.*diffusion_pytorch_model") < base_bytes + 2**17
    # but for an adapter outside the tree, whose file is asked what it was trained on
    assert found["lora-of-others"]["verdict"] == "not_testable" and found["lora-of-others"]["lineage_reading"]
    for name in ("giant", "header", "small-unet", "sdxl-lora", "pickle", "tricks"):
        assert hub.bytes_sent(f"user0/{name}/.*(safetensors|bin)") < 2**17
    assert kept.read_text() == "mine" and not list((tmp_path / "out").glob(".aiao-downloads-*"))
    for suffix in ("md", "html", "csv", "json"):
        assert (tmp_path / "out" / f"report.{suffix}").stat().st_size > 1000
    assert "Holm" in (tmp_path / "out" / "report.md").read_text()


def test_every_candidate_of_a_repository_is_a_row(hub: HubServer, tmp_path: Path) -> None:
    """The clean weights run; the marked ones lie beside them as a variant, an average, and a GGUF file."""
    hub.add_repo(BASE, folder("marked"))
    clean, marked = (folder(name, "unet/", "model_index") for name in ("base", "marked"))
    gguf = next(fmt for fmt in whole_models() if fmt.name == "GGUF, plain")
    written = gguf.write(Change(load_denoiser(ASSETS / "marked"), {}), tmp_path / "marked")
    other = gguf.write(Change(tiny_unet(), {}), tmp_path / "tiny")
    variant = "unet/diffusion_pytorch_model.fp16.safetensors"
    files = {
        **{**clean, "README.md": card(base_model=BASE), variant: marked[UNET]},
        **{f"unet_ema/{name.partition('/')[2]}": path for name, path in marked.items() if name.startswith("unet/")},
        **{"q8.gguf": written, "of-others.gguf": other, "page.gguf": b"<!doctype html>" * 9},
    }
    hub.add_repo("u/many", files)
    report = scan(BASE, KEY, output=tmp_path / "out", workers=1)
    rows = {row.file: (row.verdict, row.copy_of) for row in report.rows}
    average = "unet_ema/diffusion_pytorch_model.safetensors"
    assert rows == {
        **{"unet": ("not_verified", None), variant: ("verified", BASE), average: ("verified", BASE)},
        **{"q8.gguf": ("verified", None), "of-others.gguf": ("not_testable", None)},
    }
    assert hub.bytes_sent("u/many/.*(fp16|ema)") < 2**18  # named as copies by their hashes


def test_more_channels_are_read_on_those_that_the_record_knows(hub: HubServer, tmp_path: Path) -> None:
    """Inpainting of the marked and of the clean weights; a folder and a bare file each."""
    hub.add_repo(BASE, folder("marked"))
    for name in ("marked", "base"):
        wide = widened(load_denoiser(ASSETS / name), in_channels=9)
        wide.save_pretrained(tmp_path / name)
        written = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        files = {f"unet/{file}": data for file, data in written.items()}
        files["bare.safetensors"] = save({f"module.{k}": v for k, v in wide.state_dict().items()})
        hub.add_repo(f"u/{name}", {**files, "README.md": card(base_model=BASE)})
    report = scan(BASE, KEY, output=tmp_path / "out", workers=1)
    found = {(row.repo, row.file): row for row in report.rows}
    assert {where: row.verdict for where, row in found.items()} == {
        (f"u/{name}", file): verdict
        for name, verdict in (("marked", "verified"), ("base", "not_verified"))
        for file in ("unet", "bare.safetensors")
    }
    twins = {row.copy_of for row in report.rows} - {None}  # the same tensors under the same config
    assert twins == {found["u/marked", "unet"].label, found["u/base", "unet"].label}
    for name in ("marked", "base"):
        row = found[f"u/{name}", "unet"]
        assert any("it takes 9 channels, the record's probe bank has 4" in text for text in row.warnings)


def test_numbers_packed_by_quanto_are_read_where_its_map_lies_beside(hub: HubServer, tmp_path: Path) -> None:
    """As for a folder on this machine, by `scan` and by `verify`; the map in another folder is none."""
    hub.add_repo(BASE, folder("marked"))
    packed = next(fmt for fmt in whole_models() if fmt.name == "optimum-quanto int8 folder")
    expected = {}
    for name, verdict in (("marked", "verified"), ("base", "not_verified")):
        written = packed.write(Change(load_denoiser(ASSETS / name), {}), tmp_path / name)
        config = json.loads((written / "config.json").read_text())
        del config["quantization_config"]
        files = {f"unet/{path.name}": path for path in written.iterdir() if path.is_file()}
        files |= {"unet/config.json": json.dumps(config).encode(), "README.md": card(base_model=BASE)}
        for where, said in ((f"unet/{QUANTO_MAP}", verdict), (QUANTO_MAP, "not_testable")):
            repo = f"u/{name}-{said}"
            hub.add_repo(repo, {**files, where: b"{}"})
            expected[repo] = said
            report = verify(repo, KEY, record=ASSETS / "marked", plan=ReadingPlan.fast())
            assert report.verdict == said and ("nor does a quanto_qmap.json" in str(report.reason)) == (
                where == QUANTO_MAP
            )
            if said == "verified":
                wrong = verify(
                    repo, KEY.child("wrong"), record=WatermarkRecord.load(ASSETS / "marked"), plan=ReadingPlan.fast()
                )
                assert wrong.verdict == "not_verified"
    report = scan(BASE, KEY, output=tmp_path / "out", workers=1)
    assert {row.repo: row.verdict for row in report.rows} == expected


def test_unmarked_base_and_wrong_key_are_refused(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, few("lora-0"))
    with pytest.raises(KeyMismatchError):
        scan(BASE, KEY.child("wrong"), output=tmp_path / "out")
    with pytest.raises(ConfigError, match="workers=0"):
        scan(BASE, KEY, output=tmp_path / "out", workers=0)


def test_ten_percent_faults_lose_nothing(hub: HubServer, tmp_path: Path) -> None:
    suspects = publish(hub, few())
    faults = [
        ServerError(probability=0.04, seed=1),
        RateLimit(probability=0.03, seed=2),
        Cut(probability=0.04, seed=3),
    ]
    for fault in faults:
        hub.faults.add(fault)
    report = scan(BASE, KEY, output=tmp_path / "out", repos=named(suspects))
    assert mistakes(report.to_dict()["rows"], suspects) == []
    assert sum(fault.hits for fault in faults) > 0.05 * len(hub.log)


def test_budget_then_resume(hub: HubServer, tmp_path: Path) -> None:
    suspects = publish(hub, few("tuned-0", "tuned-1", "lora-0", "pickle"))
    out, names = tmp_path / "out", named(suspects)
    poor = scan(BASE, KEY, output=out, repos=names, max_gb=0.02)
    spent = [row for row in poor.rows if "max_gb" in (row.reason or "")]
    assert spent and not any(row.settled for row in spent) and poor.statistics["downloaded"] <= 0.02e9
    hub.log.clear()
    rich = scan(BASE, KEY, output=out, repos=names)
    assert mistakes(rich.to_dict()["rows"], suspects) == []
    settled = {row.repo for row in poor.rows if row.settled}
    assert settled and not any(hub.requests("GET", f"{repo}/") for repo in settled)
    with pytest.raises(OutputExistsError, match="another scan"):
        scan(BASE, KEY, output=out, alpha=1e-3)


def test_a_new_commit_is_read_again(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo(BASE, folder("marked"))
    hub.add_repo("u/x", {"README.md": card(base_model=BASE), "x.bin": b"\x80\x04"})
    assert scan(BASE, KEY, output=tmp_path / "out").counts["not_testable"] == 1
    hub.commit("u/x", {LORA: ASSETS / "lora" / LORA}, deletes=["x.bin"])
    again = scan(BASE, KEY, output=tmp_path / "out")
    assert again.counts == {"verified": 1, "not_verified": 0, "not_testable": 0}
    assert again.rows[0].commit == hub.sha("u/x")
    hub.commit("u/x", {"notes.txt": b"the same weights"})
    hub.log.clear()
    last = scan(BASE, KEY, output=tmp_path / "out")
    assert (last.rows[0].commit, last.rows[0].copy_of) == (hub.sha("u/x"), None)
    assert last.rows[0].log10_p == again.rows[0].log10_p and not hub.requests("GET", "/files/.*u/x", host="cdn")[1:]


def test_a_file_that_changes_in_mid_download_is_logged(hub: HubServer, tmp_path: Path) -> None:
    suspects = publish(hub, few("lora-0", "lora-1"))
    other = save(lora(99))  # of the same size
    hub.swap_file("user0/lora-1", LORA, other, after=1)  # the header is the true one, the download is not
    report = scan(BASE, KEY, output=tmp_path / "out", repos=named(suspects))
    rows = {row.repo: row for row in report.rows}
    assert rows["user0/lora-0"].verdict == "verified"
    assert (
        rows["user0/lora-1"].verdict == "not_testable" and "changed during the download" in rows["user0/lora-1"].reason
    )


@pytest.fixture(scope="module")
def carrying(disguisable: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small marked model with a lineage carrier as `base/`, the record without it as `plain/`, and LoRAs of one gradient step."""
    root = tmp_path_factory.mktemp("carrying")
    clean, unet, embedded = disguisable
    add_carrier(unet, KEY, latents(), scheduler=DDPMScheduler(), samples=4)
    unet.save_pretrained(root / "base" / "unet")
    replace(embedded.record, lineage=carried(0.25, unet)).save(root / "base")
    embedded.record.save(root / "plain")
    for name, model in (("own", unet), ("twins", clean), ("strangers", conditional(7, layers_per_block=2))):
        gradient_lora(model, root / f"{name}.safetensors", latents())
    return root


def publish_carrying(hub: HubServer, root: Path) -> list[str]:
    """The base, four repositories that name it, and three that do not, whose names are returned."""
    base = {path.relative_to(root / "base").as_posix(): path for path in (root / "base").rglob("*") if path.is_file()}
    hub.add_repo(BASE, base)
    child = {"README.md": card(base_model=BASE)}
    for name in ("own", "twins"):
        hub.add_repo(f"in/{name}", {**child, LORA: root / f"{name}.safetensors"})
    hub.add_repo("in/copy", {**child, "style.safetensors": root / "own.safetensors"})
    wide = {f"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_{p}.weight": torch.zeros(s)
            for p, s in (("A", (4, 1280)), ("B", (1280, 4)))}  # fmt: skip
    hub.add_repo("in/wide", {**child, LORA: save(wide)})
    hub.add_repo("out/own", {"README.md": card(base_model="other/model"), LORA: root / "own.safetensors"})
    hub.add_repo("out/none", {LORA: save(kohya(load_file(root / "own.safetensors")))})
    hub.add_repo("out/strangers", {LORA: root / "strangers.safetensors"})
    return ["out/own", "out/none", "out/strangers"]


def test_adapters_are_traced_inside_the_tree_and_outside(hub: HubServer, carrying: Path, tmp_path: Path) -> None:
    repos = publish_carrying(hub, carrying)
    report = scan(BASE, KEY, output=tmp_path / "out", repos=repos, workers=1)
    lineage = {row.repo: report.lineage_verdict_of(row) for row in report.rows}
    assert {row.repo: (report.verdict_of(row), report.proves(row)) for row in report.rows} == {
        **dict.fromkeys(("in/own", "in/copy", "in/twins"), ("verified", "carries")),
        **dict.fromkeys(("in/wide", *repos), ("not_testable", "nothing")),
    }
    assert lineage == {
        **dict.fromkeys(("in/own", "in/copy", "out/own", "out/none"), "verified"),
        **dict.fromkeys(("in/twins", "out/strangers"), "not_verified"),
        "in/wide": "not_testable",
    }
    found = {row.repo: row for row in report.rows}
    assert found["out/own"].denoiser_evals == 0 and "for other/model" in (found["out/own"].reason or "")
    # the same file, read on the base once; as kohya writes it the names differ, and so do the hashes
    assert sorted(found[name].copy_of is None for name in ("in/own", "in/copy")) == [False, True]
    assert found["out/none"].copy_of is None and found["in/wide"].bytes == 0
    for suffix in ("md", "html", "csv"):
        assert "lineage Holm" in (tmp_path / "out" / f"report.{suffix}").read_text()
    lines = [json.loads(line) for line in (tmp_path / "out" / "scan.jsonl").read_text().splitlines()]
    logged = {line["repo"]: line["rows"][0]["lineage_reading"]["verdict"] for line in lines[1:]}
    assert logged == lineage
    hub.log.clear()
    again = scan(BASE, KEY, output=tmp_path / "out", repos=repos)
    assert again.to_dict()["rows"] == report.to_dict()["rows"]
    assert not any(hub.requests("GET", f"{name}/resolve") for name in lineage)


def test_a_log_without_lineages_goes_on_with_them(hub: HubServer, carrying: Path, tmp_path: Path) -> None:
    """As a version before them wrote it; a record without a carrier reads as that version did."""
    repos, out = publish_carrying(hub, carrying), tmp_path / "out"
    hub.add_repo("in/model", {"README.md": card(base_model=BASE), **folder_of(carrying / "base" / "unet")})
    plain = scan(BASE, KEY, output=out, repos=repos, record=carrying / "plain", workers=1)
    assert not plain.asks_lineage and "lineage" not in (out / "report.csv").read_text()
    assert not any(row.bytes for row in plain.rows if row.repo in repos)
    log = out / "scan.jsonl"
    log.write_text(log.read_text().replace(', "lineage_reading": null', ""))
    hub.log.clear()
    report = scan(BASE, KEY, output=out, repos=repos, workers=1)
    assert report.lineage_counts == {"verified": 4, "not_verified": 2, "not_testable": 1}
    assert report.counts == plain.counts and not hub.requests("GET", "in/model/resolve")


def test_of_a_carrier_alone_lineage_is_all_that_is_asked(hub: HubServer, carrying: Path, tmp_path: Path) -> None:
    repos = publish_carrying(hub, carrying)
    hub.add_repo("in/model", {"README.md": card(base_model=BASE), **folder_of(carrying / "base" / "unet")})
    record = WatermarkRecord.load(carrying / "base")
    only = replace(record, lineage={**(record.lineage or {}), "only": True})
    report = scan(BASE, KEY, output=tmp_path / "out", repos=repos, record=only, workers=1)
    assert report.counts == {"verified": 1, "not_verified": 0, "not_testable": 7}
    assert report.lineage_counts == {"verified": 4, "not_verified": 2, "not_testable": 1}
    (model,) = (row for row in report.rows if row.repo == "in/model")
    assert report.proves(model) == "lineage in weights" and model.denoiser_evals == 0 and model.copy_of == BASE
    assert all("carrier alone" in (row.reason or "") for row in report.rows if row.repo in ("in/own", "in/twins"))
    assert report.carrier_alone and "descent" not in {report.proves(row) for row in report.rows}
    assert any("carrier alone" in text for text in report.warnings) and "carrier alone" in report.to_markdown()


def folder_of(path: Path) -> dict[str, Path]:
    return {f"{path.name}/{file.name}": file for file in path.iterdir()}


def test_resumes_after_kill_nine(hub: HubServer, tmp_path: Path) -> None:
    suspects = publish(hub, few())
    slow = hub.faults.add(Slow(host="cdn", bytes_per_second=8e6, path="user0"))
    out = tmp_path / "out"
    words = ["scan", BASE, "--key", ASSETS / "demo.key", "-o", out, "--workers", "1", "--json"]
    words += [word for name in named(suspects) for word in ("--repo", name)]
    program = "from aiao_diffusers.cli import main; main()"
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    env.update(hub.env(tmp_path / "home", token=hub.token))
    command = [sys.executable, "-c", program, *map(str, words)]
    log = out / "scan.jsonl"
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 240
        while not log.is_file() or log.read_bytes().count(b"\n") < 4:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    before = log.read_bytes()
    lines = before.split(b"\n")
    with log.open("ab") as file:
        file.write(b'{"repo": "user0/torn", "comm')  # what a kill in mid-write leaves
    slow.times = 0
    hub.log.clear()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert mistakes(result["rows"], suspects) == []
    assert log.read_bytes().startswith(before)  # append-only
    known = {json.loads(line)["repo"] for line in lines[1:] if line}
    settled = {s.repo for s in suspects if s.repo in known and s.reason not in ("missing", "accept its terms")}
    assert settled and not any(hub.requests("GET", f"{repo}/resolve") for repo in settled)


def test_a_second_scan_leaves_the_first_ones_downloads_alone(hub: HubServer, tmp_path: Path) -> None:
    """Two scans in one folder at once: the second is refused and the first comes to its end."""
    suspects, out = publish(hub, few("lora-0", "lora-1")), tmp_path / "out"
    refused: list[str] = []

    def second(rows: object, done: int, total: int) -> None:
        kept = sorted(out.glob(".aiao-downloads-*"))
        with pytest.raises(ResultsError, match="in use by another run") as error:
            scan(BASE, KEY, output=out)
        assert kept and sorted(out.glob(".aiao-downloads-*")) == kept
        refused.append(str(error.value))

    report = scan(BASE, KEY, output=out, repos=named(suspects), callback=second)
    assert mistakes(report.to_dict()["rows"], suspects) == [] and str(out) in refused[0]
