"""Every test: no address but loopback, no token or cache of the user, no Xet, a Hub server without crashes, and the CPU.

A miniature made here must meet the pipeline it is compared with on one device. `ACCELERATE_USE_CPU=0 pytest
tests/embedding/test_embed.py` trains the miniatures on a GPU instead.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
# read once, when huggingface_hub is imported; `hermetic` covers the case that another test imported it before
os.environ.setdefault("ACCELERATE_USE_CPU", "1")  # read when accelerate first asks for the device
os.environ.update(HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")

from huggingface_hub import HfApi, constants, file_download  # noqa: E402
from huggingface_hub.utils import _http  # noqa: E402

from aiao_diffusers.hub import remote  # noqa: E402
from tests.hub_server import HubServer  # noqa: E402


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
