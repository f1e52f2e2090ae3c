"""Measure a scan against a local Hub: right answers, memory, time, and what faults cost.

    python examples/scan_local_hub.py                # 200 repositories, then 20, then 200 with faults
    python examples/scan_local_hub.py --repos 40 --no-faults

The Hub runs in this process, each scan in one of its own (`aiao scan`), whose peak memory is read while it runs. Prints one
JSON object a scan. Exit code 1 when a verdict is wrong or a result is lost.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.hub_server import Cut, HubServer, RateLimit, ServerError  # noqa: E402
from tests.suspects import ASSETS, BASE, Suspect, mistakes, population, publish  # noqa: E402


def peak_mib(pid: int) -> float:
    """Peak resident memory of a live process, MiB (Linux)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def measure(server: HubServer, suspects: list[Suspect], folder: Path, workers: int) -> dict[str, Any]:
    """One `aiao scan` in a fresh process with an empty cache."""
    program = "from aiao_diffusers.cli import main; main()"
    words = ["scan", BASE, "--key", str(ASSETS / "demo.key"), "-o", str(folder / "out"), "--json"]
    words += ["--workers", str(workers)]
    words += [word for suspect in suspects if suspect.named for word in ("--repo", suspect.repo)]
    env = {**os.environ, **server.env(folder / "home", token=server.token)}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    peak, result = 0.0, folder / "result.json"
    folder.mkdir(parents=True)
    with result.open("w") as out, (folder / "stderr.txt").open("w") as err:
        with subprocess.Popen([sys.executable, "-c", program, *words], env=env, stdout=out, stderr=err) as process:
            while process.poll() is None:
                peak = max(peak, peak_mib(process.pid))
                time.sleep(0.05)
    if process.returncode:
        raise SystemExit((folder / "stderr.txt").read_text())
    report = json.loads(result.read_text())
    seconds = {part: sum(row["seconds"].get(part, 0.0) for row in report["rows"]) for part in ("download", "denoiser")}
    base_bytes = sum(entry.sent for entry in server.requests("GET", f"{BASE}/.*diffusion_pytorch_model"))
    wall, work = report["statistics"]["seconds"], sum(seconds.values())
    return {
        "repositories": report["statistics"]["repositories"],
        "counts": report["counts"],
        "mistakes": mistakes(report["rows"], suspects),
        "false_verdicts": sum(
            row["verdict"] != "not_testable" and row["verdict"] != suspect.verdict
            for row in report["rows"]
            for suspect in suspects
            if suspect.repo == row["repo"]
        ),
        "largest_log10_p_verified": max(r["log10_p"] for r in report["rows"] if r["verdict"] == "verified"),
        "smallest_log10_p_not_verified": min(r["log10_p"] for r in report["rows"] if r["verdict"] == "not_verified"),
        "wall_seconds": round(wall, 1),
        "download_seconds": round(seconds["download"], 1),
        "denoiser_seconds": round(seconds["denoiser"], 1),
        "wall_over_work": round(wall / work, 2),
        "downloaded_mb": round(report["statistics"]["downloaded"] / 1e6, 1),
        "base_downloads": round(
            base_bytes / (ASSETS / "marked/unet/diffusion_pytorch_model.safetensors").stat().st_size, 2
        ),
        "peak_mib": round(peak),
    }


def run(repos: int, workers: int, faults: bool, scratch: Path) -> dict[str, Any]:
    """A fresh server with the first `repos` suspects, scanned once."""
    rounds = -(-repos // 40)
    with HubServer() as server:
        # the one that does not exist counts as well
        suspects = publish(server, islice(population(rounds), repos - 1))
        added = []
        if faults:
            added = [
                server.faults.add(ServerError(probability=0.034, seed=1)),
                server.faults.add(RateLimit(probability=0.033, seed=2)),
                server.faults.add(Cut(probability=0.033, seed=3)),
            ]
        figures = measure(server, suspects, scratch / f"{repos}-{faults}", workers)
        figures["requests"] = len(server.log)
        figures["faults"] = sum(fault.hits for fault in added)
        assert not server.crashes, server.crashes
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repos", type=int, default=200)
    parser.add_argument("--few", type=int, default=20, help="the smaller scan, for memory")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--no-faults", action="store_true")
    options = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as scratch:
        plans = [(options.few, False), (options.repos, False)] + ([] if options.no_faults else [(options.repos, True)])
        for repos, faults in plans:
            figures = run(repos, options.workers, faults, Path(scratch))
            print(json.dumps(figures), flush=True)
            wrong |= bool(figures["mistakes"])
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
