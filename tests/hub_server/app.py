"""Which function answers which address. Reading is in `reads` and `files`, changing in `writes` and `uploads`."""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from . import errors
from .faults import Faults
from .store import Commit, HubStore, Kind, Repo, User
from .wire import Request, Response


KINDS: dict[str, Kind] = {"models": "model", "datasets": "dataset", "spaces": "space"}

_KIND = r"/api/(?P<kind>models|datasets|spaces)"
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+|[\w.-]+)"
_PLAIN = rf"/(?:(?P<kind>datasets|spaces)/)?{_REPO}"


@dataclass
class Context:
    """What a route gets: the store, the limits, the two addresses, and the request with its user and address parts."""

    app: "HubApp"
    request: Request
    user: User | None
    parts: dict[str, str]

    @property
    def store(self) -> HubStore:
        return self.app.store

    @property
    def kind(self) -> Kind:
        return KINDS[self.parts.get("kind") or "models"]

    def repo(self) -> Repo:
        """The repo of the address. Raises: HubError: RepoNotFound."""
        return self.store.repo(self.kind, self.parts["repo"], self.user)

    def writable(self) -> tuple[Repo, User]:
        repo = self.repo()
        return repo, self.store.check_writable(repo.id, self.user)

    def writable_ref(self, repo: Repo, revision: str) -> str:
        """The ref that a commit to `revision` moves: a branch for writers, a pull request for its author too.

        Raises:
            HubError: 401 or 403 without the right, RevisionNotFound for tags, hashes and unknown names.
        """
        match = re.fullmatch(r"refs/pr/(\d+)", revision)
        if match and int(match[1]) in repo.pulls:
            if self.user is None or self.user.name != repo.pulls[int(match[1])].author:
                self.store.check_writable(repo.id, self.user)
            return f"pr/{match[1]}"
        self.store.check_writable(repo.id, self.user)
        if f"heads/{revision}" not in repo.refs:
            raise errors.revision_not_found(revision)
        return f"heads/{revision}"

    def revision(self) -> str:
        return self.parts.get("rev") or "main"

    def commit(self, repo: Repo) -> Commit:
        return repo.resolve(self.revision())

    def url_of(self, repo: Repo) -> str:
        return self.app.hub_url + ("" if repo.kind == "model" else f"/{repo.kind}s") + f"/{repo.id}"


Route = Callable[[Context], Response]
_ROUTES: list[tuple[str, re.Pattern[str], str, Route]] = []


def route(method: str, pattern: str, host: str = "hub") -> Callable[[Route], Route]:
    """Register a function for `method` and an address; KIND, REPO, PLAIN, REV and PATH stand for their patterns."""
    for name, regex in {
        "KIND": _KIND,
        "REPO": _REPO,
        "PLAIN": _PLAIN,
        "REV": r"(?P<rev>[^/]+)",
        "PATH": r"(?P<path>.+)",
    }.items():
        pattern = re.sub(rf"\b{name}\b", regex.replace("\\", r"\\"), pattern)

    def register(function: Route) -> Route:
        _ROUTES.append((method, re.compile(pattern), host, function))
        return function

    return register


@dataclass
class HubApp:
    """The application behind both listeners.

    Args:
        page_size: entries of a page at most, in every listing.
        multipart_above: a larger upload goes up in parts of `part_size` bytes.
    """

    store: HubStore
    faults: Faults
    page_size: int
    multipart_above: int
    part_size: int
    hub_url: str = ""
    cdn_url: str = ""
    _secret: bytes = b"a fixed secret: signed links stay the same from run to run"

    def __post_init__(self) -> None:
        self.parts: dict[tuple[str, str, int], str] = {}  # of multipart uploads: (repo, oid, number) -> sha256

    def __call__(self, request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        other_method = False
        for allowed, pattern, host, function in _ROUTES:
            match = pattern.fullmatch(request.path) if host == request.host else None
            if match is None:
                continue
            if allowed != method:
                other_method = True
                continue
            parts = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            # signed links carry their own permission, a token has no place there
            user = self.store.user(request.token) if host == "hub" else None
            return function(Context(self, request, user, parts))
        if other_method:
            raise errors.HubError(405, f"{request.method} is not allowed here")
        raise errors.HubError(404, f"Sorry, there is no such page: {request.method} {request.path}")

    def sign(self, path: str, *, host: str = "cdn", **query: Any) -> str:
        """A link that permits itself; `query` is part of what is signed."""
        text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in sorted(query.items()))
        address = quote(path)
        base = self.cdn_url if host == "cdn" else self.hub_url
        return f"{base}{address}?{text}{'&' if text else ''}sig={self._signature(address, text)}"

    def check_signed(self, request: Request) -> None:
        """Raises: HubError: 403 without a valid signature, 400 with a token, as the storage hosts do."""
        text = "&".join(
            f"{name}={quote(values[0], safe='')}" for name, values in sorted(request.query.items()) if name != "sig"
        )
        if not hmac.compare_digest(self._signature(request.path, text), request.one("sig") or ""):
            raise errors.forbidden("SignatureDoesNotMatch")
        if "authorization" in request.headers:
            raise errors.bad_request("Only one auth mechanism allowed: a token must not leave the Hub")

    def _signature(self, path: str, query: str) -> str:
        return hmac.new(self._secret, f"{path}?{query}".encode(), hashlib.sha256).hexdigest()[:32]
