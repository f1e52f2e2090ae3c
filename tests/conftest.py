"""Every test: no address but loopback, no token or cache of the user, no Xet, a Hub server without crashes, and the CPU.

A miniature made here must meet the pipeline it is compared with on one device. `ACCELERATE_USE_CPU=0 pytest
tests/embedding/test_embed.py` trains the miniatures on a GPU instead.

The slowest files come first, by `durations.json`, so that workers side by side end together (`pytest -n 2 --dist loadfile
--no-loadscope-reorder`, which is what `make test` runs). `--write-durations` measures that file anew.
"""

import inspect
import json
import os
import pickle
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# One thread a worker: two on two cores would otherwise wait for each other. Before torch is imported, and for processes too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# read once, when huggingface_hub is imported; `hermetic` covers the case that another test imported it before
os.environ.setdefault("ACCELERATE_USE_CPU", "1")  # read when accelerate first asks for the device
os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

import torch  # noqa: E402
from _kind import WITHOUT_EXTRAS  # noqa: E402
from filelock import FileLock  # noqa: E402
from huggingface_hub import HfApi, constants, file_download  # noqa: E402
from huggingface_hub.utils import _http  # noqa: E402

from aiao_diffusers.denoiser import price  # noqa: E402
from aiao_diffusers.embedding.layer_profile import self_profile  # noqa: E402
from aiao_diffusers.errors import MissingExtraError  # noqa: E402
from aiao_diffusers.hub import remote  # noqa: E402
from tests.hub_server import HubServer  # noqa: E402


torch.set_num_threads(1)
DURATIONS = Path(__file__).with_name("durations.json")
EXTRAS = {"asn1crypto", "cryptography", "gguf", "lycoris", "matplotlib", "optimum", "py_ecc", "rfc3161_client"}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-durations", action="store_true", help=f"write the seconds of each file to {DURATIONS}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest file first; within a file as it is written. A file without a figure comes after those that have one."""
    seconds = json.loads(DURATIONS.read_text())
    items.sort(key=lambda item: -seconds.get(item.path.relative_to(ROOT).as_posix(), 0.0))


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--write-durations"):
        config.pluginmanager.register(Durations())


class Durations:
    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid.partition("::")[0]] += report.duration  # type: ignore[assignment]

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            found = {name: round(seconds, 1) for name, seconds in self.seconds.most_common() if seconds >= 1}
            DURATIONS.write_text(json.dumps(found, indent=1) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """A test that asks for an extra is skipped where extras are left out on purpose. In other runs no test may be skipped, but
    for those of /proc on other systems.
    """
    report = yield
    error = call.excinfo.value if call.excinfo else None
    missing = isinstance(error, MissingExtraError) or (
        isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in EXTRAS
    )
    if WITHOUT_EXTRAS and missing:
        report.outcome, report.longrepr = "skipped", (str(item.path), item.location[1], f"needs an extra: {error}")
    elif report.skipped and not WITHOUT_EXTRAS and sys.platform == "linux" and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped, and every test is required: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Any]], Any]:
    """`once(name, make)`: what `make` returns, made by one worker and read by the others; each caller gets a copy."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def get(name: str, make: Callable[[], Any]) -> Any:
        file = root / f"{name}.pickle"
        with FileLock(f"{file}.lock"):
            if not file.exists():
                file.write_bytes(pickle.dumps(make()))
        return pickle.loads(file.read_bytes())

    return get


@pytest.fixture(scope="session")
def begun(once: Callable[[str, Callable[[], Any]], Any]) -> Any:
    """A miniature after one step of a mark with masks for pairs of sites, too few to verify, and its record."""
    from _tiny import mark_pairs

    def make() -> Any:
        with pytest.warns(UserWarning, match="too weak"):
            return mark_pairs()

    return once("begun", make)


@pytest.fixture(params=["text", "unconditional"])
def model(request: pytest.FixtureRequest) -> Any:
    """A miniature of either kind, a sample, and the keywords of its call, for `predict`."""
    from _tiny import of_both_kinds

    return of_both_kinds(request.param)


@pytest.fixture(scope="session")
def disguisable(once: Callable[[str, Callable[[], Any]], Any]) -> Any:
    """A miniature teacher, the same marked, and what embedding returned."""
    from _disguises import mark_miniature

    return once("disguisable", mark_miniature)


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    """What every embedding measures beside its training takes most of the time of a short one.

    Its price over 32 pictures in place of 256, and which layers are lazy by 8 steps in place of 40.
    """
    monkeypatch.setitem(inspect.unwrap(price.predictions).__kwdefaults__, "samples", 32)
    monkeypatch.setitem(self_profile.__kwdefaults__, "steps", 8)


@pytest.fixture(autouse=True)
def hermetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    connect = socket.socket.connect

    def loopback_only(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server
    assert server.crashes == []


@pytest.fixture
def api(server: HubServer) -> HfApi:
    """The client of `owner`."""
    return HfApi(endpoint=server.url, token=server.token)


@pytest.fixture
def guest(server: HubServer) -> HfApi:
    return HfApi(endpoint=server.url, token=False)


@pytest.fixture
def hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """The server as this process's Hub, with waits noted in `hub.waits` instead of waited for."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    server.waits = []  # type: ignore[attr-defined]
    for module in (_http, file_download, remote):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=server.waits.append))  # type: ignore[attr-defined]
    return server


@pytest.fixture
def python(server: HubServer, tmp_path: Path) -> Callable[[str], str]:
    """Run code in a fresh process whose `HF_ENDPOINT` is the server; returns what it prints, fails when it fails."""

    def run(code: str) -> str:
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        env.update(server.env(tmp_path / "home", token=server.token))
        done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run
