"""The server as a test holds it: start, fill, break, look."""

import re
import secrets
import tempfile
import threading
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from . import files as _files  # noqa: F401
from . import reads, uploads, writes  # noqa: F401 - they register their routes
from .app import HubApp
from .blobs import Content
from .faults import Faults, Swap
from .store import Gated, HubStore, Kind, Repo, User
from .wire import Listener, Logged


class HubServer:
    """A Hub on two free loopback ports (`url`, and `cdn_url` for large files), for `with` or `start()` and `stop()`.

    A user `owner` with the token `hf_owner` is there from the start.

    Attributes:
        faults: switch things off and on, see `faults.py`.
        log: every request, oldest first; see `requests` and `bytes_sent`.
        crashes: tracebacks of bugs of this server; a test asserts that it is empty.
        store: all state, for what has no method here.
        app: limits that may change while it runs: `page_size`, `multipart_above`, `part_size`.
    """

    token = "hf_owner"

    def __init__(
        self, *, page_size: int = 1000, multipart_above: int = 64 * 1024 * 1024, part_size: int = 16 * 1024 * 1024
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hub-server-", ignore_cleanup_errors=True)
        self.faults = Faults()
        self.log: list[Logged] = []
        self.crashes: list[str] = []
        self.store = HubStore(Path(self._folder.name))
        self.app = HubApp(self.store, self.faults, page_size, multipart_above, part_size)
        self._listeners: list[Listener] = []
        self.add_user("owner", token=self.token)

    def start(self) -> Self:
        hosts: tuple[Literal["hub", "cdn"], ...] = ("hub", "cdn")
        self._listeners = [Listener(host, self.app, self.faults, self.log, self.crashes) for host in hosts]
        self.app.hub_url, self.app.cdn_url = (listener.url for listener in self._listeners)
        for listener in self._listeners:
            threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Free the ports and the folder. May be called twice."""
        for listener in self._listeners:
            listener.stop()
        self._listeners = []
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return self.app.hub_url

    @property
    def cdn_url(self) -> str:
        return self.app.cdn_url

    def env(self, home: Path, *, token: str | None = None) -> dict[str, str]:
        """Environment of a process whose `huggingface_hub` shall know this server only, its cache under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_TOKEN": token or "",
            "NO_PROXY": "127.0.0.1",
        }

    # filling it

    def add_user(
        self,
        name: str,
        *,
        token: str | None = None,
        role: Literal["read", "write"] = "write",
        orgs: tuple[str, ...] = (),
    ) -> str:
        """A user who owns the repos of `name` and of `orgs`. Returns the token."""
        token = token or f"hf_{secrets.token_hex(8)}"
        self.store.users[token] = User(name, token, role, orgs)
        return token

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, Content],
        *,
        private: bool = False,
        gated: Gated | Literal[True] = False,
        kind: Kind = "model",
        date: datetime | None = None,
        security: dict[str, Any] | None = None,
        downloads: int = 0,
        likes: int = 0,
        bare: bool = False,
    ) -> str:
        """A new repo with these files on `main`. Returns the commit hash.

        Nothing is checked, unlike a commit over HTTP: broken cards and hostile paths go in as they are.

        Args:
            files: path in the repo to bytes, a path on disk, or a `Hollow`.
            gated: True means "auto".
            date: of its creation and commits (with a time zone), now when None.
            security: the `securityRepoStatus` that `model_info` shows.
            bare: leave out the `.gitattributes` that every new repo has.
        """
        author = repo_id.split("/")[0]
        with self.store.lock:
            repo = self.store.create(
                kind, repo_id, author, private=private, gated="auto" if gated is True else gated, date=date
            )
            repo.downloads, repo.likes = downloads, likes
            repo.security = security or repo.security
            return self.commit(repo_id, files, deletes=[".gitattributes"] if bare else [], kind=kind, date=date)

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, Content],
        *,
        deletes: list[str] | tuple[str, ...] = (),
        revision: str = "main",
        title: str = "Upload files",
        kind: Kind = "model",
        date: datetime | None = None,
    ) -> str:
        """One more commit on a branch, unchecked. Returns its hash."""
        with self.store.lock:
            repo = self.repo(repo_id, kind)
            head = repo.resolve(revision)
            tree = {path: entry for path, entry in head.tree.items() if path not in deletes}
            tree.update({path: self.store.entry(path, content, head.tree) for path, content in files.items()})
            author = repo_id.split("/")[0]
            ref = f"heads/{revision}"
            return self.store.commit(repo, tree, title, "", author, ref=ref, parents=(head.oid,), date=date).oid

    def branch(self, repo_id: str, name: str, revision: str = "main", *, kind: Kind = "model") -> None:
        repo = self.repo(repo_id, kind)
        repo.refs[f"heads/{name}"] = repo.resolve(revision).oid

    def tag(self, repo_id: str, name: str, revision: str = "main", *, kind: Kind = "model") -> None:
        repo = self.repo(repo_id, kind)
        repo.refs[f"tags/{name}"] = repo.resolve(revision).oid

    def grant(self, repo_id: str, user: str, *, kind: Kind = "model") -> None:
        """Let a user read a private or gated repo of others."""
        self.repo(repo_id, kind).readers.add(user)

    def delete_repo(self, repo_id: str, *, kind: Kind = "model") -> None:
        del self.store.repos[kind, repo_id]

    def swap_file(self, repo_id: str, path: str, content: Content, *, after: int = 0, announce: bool = False) -> Swap:
        """Serve other bytes under the same revision after `after` reads; `announce` also changes ETag and size."""
        return self.faults.swap(repo_id, path, Swap(self.store.blobs.add(content), after, announce))

    # looking at it

    def repo(self, repo_id: str, kind: Kind = "model") -> Repo:
        """Raises: KeyError."""
        return self.store.repos[kind, repo_id]

    def sha(self, repo_id: str, revision: str = "main", *, kind: Kind = "model") -> str:
        return self.repo(repo_id, kind).resolve(revision).oid

    def files(self, repo_id: str, revision: str = "main", *, kind: Kind = "model") -> list[str]:
        return sorted(self.repo(repo_id, kind).resolve(revision).tree)

    def read(self, repo_id: str, path: str, revision: str = "main", *, kind: Kind = "model") -> bytes:
        return self.repo(repo_id, kind).resolve(revision).tree[path].blob.read()

    def requests(self, method: str | None = None, path: str = "", *, host: str | None = None) -> list[Logged]:
        """The log, cut down to a method, a regular expression searched in the path, and a host."""
        return [
            entry
            for entry in list(self.log)
            if method in (None, entry.method) and host in (None, entry.host) and re.search(path, entry.path)
        ]

    def bytes_sent(self, path: str = "") -> int:
        """Body bytes of all GET answers whose path matches."""
        return sum(entry.sent for entry in self.requests("GET", path))
