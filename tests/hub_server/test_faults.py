"""Each fault switch of the local Hub, seen from real `huggingface_hub` code."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, file_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import _http, get_session

from tests.hub_server import Cut, EndlessPages, Fault, HubServer, RateLimit, ServerError, Slow


httpx = getattr(_http, "httpx2", None) or _http.httpx  # the client's, by the name that its version gives it


WEIGHTS = bytes(range(256)) * 4_000


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The client's waits between attempts, noted instead of waited for."""
    waited: list[float] = []
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=waited.append))
    return waited


@pytest.fixture
def repo(server: HubServer) -> HubServer:
    server.add_repo("owner/x", {"a.txt": b"text " * 1000, "w.safetensors": WEIGHTS})
    return server


class TestStatus:
    def test_rate_limit_is_waited_for(self, repo: HubServer, api: HfApi, sleeps: list[float]) -> None:
        fault = repo.faults.add(RateLimit(retry_after=7, path="^/api/models", times=2))
        assert [model.id for model in api.list_models()] == ["owner/x"]
        assert sleeps == [8.0, 8.0]  # the client adds one second
        assert fault.hits == 2 and [entry.status for entry in repo.log] == [429, 429, 200]

    def test_server_error_is_retried(self, repo: HubServer, api: HfApi, sleeps: list[float]) -> None:
        repo.faults.add(ServerError(status=503, method="HEAD", times=3))
        assert Path(api.hf_hub_download("owner/x", "w.safetensors")).read_bytes() == WEIGHTS
        assert len(repo.requests("HEAD")) == 4

    def test_what_the_client_does_not_retry_fails(self, repo: HubServer, api: HfApi) -> None:
        repo.faults.add(ServerError(path="^/api/models/owner/x$"))
        with pytest.raises(HfHubHTTPError) as error:
            api.model_info("owner/x")
        assert error.value.response.status_code == 500

    def test_an_upload_meets_its_status_not_a_broken_pipe(
        self, server: HubServer, api: HfApi, sleeps: list[float]
    ) -> None:
        server.add_repo("owner/x", {})
        server.faults.add(ServerError(method="PUT", times=1))
        api.upload_file(repo_id="owner/x", path_or_fileobj=WEIGHTS * 10, path_in_repo="w.safetensors")
        assert [entry.status for entry in server.requests("PUT")] == [500, 200]


class TestCut:
    def test_download_resumes_by_range(
        self, repo: HubServer, api: HfApi, sleeps: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # the client forgets what is less than a chunk
        repo.faults.add(Cut(host="cdn", after_bytes=100_000, times=2))
        assert Path(api.hf_hub_download("owner/x", "w.safetensors")).read_bytes() == WEIGHTS
        ranges = [entry.range for entry in repo.requests("GET", host="cdn")]
        assert ranges == [None, "bytes=100000-", "bytes=200000-"]
        assert repo.bytes_sent("w.safetensors") - sum(e.sent for e in repo.requests("GET", host="hub")) == len(WEIGHTS)

    def test_a_cut_never_lets_the_whole_body_through(self, repo: HubServer) -> None:
        repo.faults.add(Cut(after_bytes=10**9))
        with pytest.raises(httpx.RemoteProtocolError):
            get_session().get(f"{repo.url}/owner/x/resolve/main/a.txt")

    def test_reset_is_a_network_error(self, repo: HubServer) -> None:
        repo.faults.add(Cut(side="silent", reset=True))
        with pytest.raises(httpx.NetworkError):
            get_session().get(f"{repo.url}/owner/x/resolve/main/a.txt")

    def test_cut_upload_leaves_nothing_and_a_second_run_sends_the_rest(
        self, server: HubServer, api: HfApi, sleeps: list[float], tmp_path: Path
    ) -> None:
        sha = server.add_repo("owner/x", {})
        for name in ("one", "two", "three"):
            (tmp_path / f"{name}.safetensors").write_bytes(name.encode() + WEIGHTS)
        # the client tries each file six times before it gives up
        server.faults.add(Cut(side="request", method="PUT", after_bytes=500_000, skip=2))
        with pytest.raises(RuntimeError, match="Error while uploading"):
            api.upload_folder(repo_id="owner/x", folder_path=tmp_path)
        assert server.sha("owner/x") == sha
        assert sum(entry.status == 200 for entry in server.requests("PUT")) == 2
        cut = [entry for entry in server.requests("PUT") if entry.faults]
        assert cut and all(500_000 <= entry.received < 800_000 and entry.status == 0 for entry in cut)
        assert not list((server.store.blobs.root / "incoming").iterdir())
        server.faults.clear()
        server.log.clear()
        api.upload_folder(repo_id="owner/x", folder_path=tmp_path)
        assert len(server.requests("PUT")) == 1
        assert len(server.files("owner/x")) == 4

    def test_silent_commit_is_made_without_an_answer(self, server: HubServer, api: HfApi) -> None:
        sha = server.add_repo("owner/x", {})
        server.faults.add(Cut(side="silent", path="/commit/"))
        with pytest.raises(httpx.RemoteProtocolError):
            api.create_commit("owner/x", [CommitOperationAdd("a.txt", b"1")], commit_message="m")
        assert server.sha("owner/x") != sha and "a.txt" in server.files("owner/x")


class TestSlow:
    def test_rate_and_delay(self, repo: HubServer, api: HfApi) -> None:
        repo.faults.add(Slow(host="cdn", bytes_per_second=2 * len(WEIGHTS), delay=0.2))
        start = time.monotonic()
        api.hf_hub_download("owner/x", "w.safetensors")
        assert 0.65 < time.monotonic() - start < 20

    def test_client_times_out(self, repo: HubServer, guest: HfApi) -> None:
        repo.faults.add(Slow(path="^/api/models", delay=30))
        with pytest.raises(httpx.TimeoutException):
            guest.model_info("owner/x", timeout=0.2)

    def test_stop_does_not_wait_for_it(self) -> None:
        with HubServer() as server:
            server.add_repo("owner/x", {"a.txt": b"x" * 1000})
            server.faults.add(Slow(bytes_per_second=10))
            with get_session().stream("GET", f"{server.url}/owner/x/resolve/main/a.txt"):
                start = time.monotonic()
                server.stop()
                assert time.monotonic() - start < 2


class TestSwap:
    @pytest.mark.parametrize("name", ["a.txt", "w.safetensors"])
    def test_bytes_change_under_the_same_revision(
        self, repo: HubServer, api: HfApi, tmp_path: Path, name: str
    ) -> None:
        sha, old, new = repo.sha("owner/x"), repo.read("owner/x", name), b"\0" * len(repo.read("owner/x", name))
        repo.swap_file("owner/x", name, new, after=1)
        got = [Path(api.hf_hub_download("owner/x", name, revision=sha, cache_dir=tmp_path / str(i))) for i in range(2)]
        assert [path.read_bytes() for path in got] == [old, new]
        assert got[0].resolve().name == got[1].resolve().name  # the etag is that of the old bytes: a client can tell

    def test_announced(self, repo: HubServer, api: HfApi) -> None:
        repo.swap_file("owner/x", "w.safetensors", b"\0other", announce=True)
        assert Path(api.hf_hub_download("owner/x", "w.safetensors")).read_bytes() == b"\0other"

    def test_another_size_is_noticed_by_the_client(self, repo: HubServer, api: HfApi) -> None:
        repo.swap_file("owner/x", "w.safetensors", b"\0short")
        with pytest.raises(OSError, match="Consistency check failed"):
            api.hf_hub_download("owner/x", "w.safetensors")


class TestEndlessPages:
    @pytest.mark.parametrize(("mode", "distinct"), [("repeat", 3), ("fresh", 50)])
    def test_models(self, server: HubServer, api: HfApi, mode: str, distinct: int) -> None:
        for i in range(3):
            server.add_repo(f"u/{i}", {})
        server.faults.add(EndlessPages(path="^/api/models", mode=mode))  # type: ignore[arg-type]
        server.app.page_size = 5
        ids = [model.id for model in islice(api.list_models(), 50)]
        assert len(ids) == 50 and ids[:3] == ["u/0", "u/1", "u/2"] and len(set(ids)) == distinct

    def test_empty_pages(self, repo: HubServer) -> None:
        repo.faults.add(EndlessPages(mode="empty"))
        url, sizes = f"{repo.url}/api/models/owner/x/tree/main", []
        for _ in range(5):
            response = get_session().get(url)
            sizes.append(len(response.json()))
            url = response.links["next"]["url"]
        assert sizes == [3, 0, 0, 0, 0]


class TestProbability:
    def struck(self, seed: int, order: Callable[[range], Iterator[int]]) -> set[int]:
        """Which of 400 different requests a 10% fault strikes."""
        with HubServer() as server:
            server.faults.add(ServerError(probability=0.1, seed=seed))
            return {i for i in order(range(400)) if server.faults.plan("GET", "hub", f"/{i}", None)}

    def test_depends_on_seed_and_request_alone(self) -> None:
        forward = self.struck(1, iter)
        assert forward == self.struck(1, reversed) != self.struck(2, iter)
        assert 20 < len(forward) < 65

    def test_a_retry_is_drawn_anew(self, server: HubServer) -> None:
        server.faults.add(ServerError(probability=0.5, seed=3))
        draws = [bool(server.faults.plan("GET", "hub", "/same", None)) for _ in range(200)]
        assert 70 < sum(draws) < 130

    def test_ten_percent_of_everything_loses_nothing(self, server: HubServer, api: HfApi, sleeps: list[float]) -> None:
        faults: list[Fault] = [
            ServerError(probability=0.1, seed=1, path="/resolve/|/files/|^/api/models$"),
            RateLimit(probability=0.1, seed=2, path="/resolve/|/files/|^/api/models$"),
            Cut(probability=0.1, seed=3, host="cdn"),
        ]
        contents = {f"u/{i}": bytes([i]) * 100_000 for i in range(30)}
        for repo_id, content in contents.items():
            server.add_repo(repo_id, {"w.safetensors": b"\0" + content})
        for fault in faults:
            server.faults.add(fault)
        lost = 0
        for model in api.list_models():
            for _ in range(5):  # a 500 at the storage host is not retried by the client: its caller must
                try:
                    path = api.hf_hub_download(model.id, "w.safetensors")
                    break
                except HfHubHTTPError:
                    lost += 1
            assert Path(path).read_bytes() == b"\0" + contents.pop(model.id)
        assert not contents
        assert all(fault.hits > 0 for fault in faults) and lost < 15


class TestMatching:
    @pytest.mark.parametrize(
        ("fault", "hits"),
        [
            (ServerError(), 2),
            (ServerError(method="HEAD"), 0),
            (ServerError(host="cdn"), 0),
            (ServerError(path="/owner/x$"), 1),
            (ServerError(path=r"refs/pr/1\?blobs=true"), 1),
            (ServerError(skip=1), 1),
            (ServerError(times=1), 1),
            (ServerError(probability=0.0), 0),
        ],
    )
    def test_conditions(self, server: HubServer, fault: Fault, hits: int) -> None:
        server.faults.add(fault)
        get_session().get(f"{server.url}/api/models/owner/x")
        get_session().get(f"{server.url}/api/models/owner/y/revision/refs%2Fpr%2F1?blobs=true")
        assert fault.hits == hits and sum(bool(entry.faults) for entry in server.log) == hits
        server.faults.clear()
        assert get_session().get(f"{server.url}/api/models").status_code == 200
