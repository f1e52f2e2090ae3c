"""Repositories with commits, branches, tags and pull requests, and who may see them. No HTTP here."""

import fnmatch
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from . import errors
from .blobs import Blob, BlobStore, Content, git_oid


Kind = Literal["model", "dataset", "space"]
Gated = Literal["auto", "manual", False]

LARGE = 10 * 1024 * 1024
GITATTRIBUTES = "".join(
    f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n"
    for suffix in (
        *(".7z", ".arrow", ".bin", ".bz2", ".ckpt", ".ftz", ".gz", ".h5", ".joblib", ".mlmodel", ".model", ".msgpack"),
        *(".npy", ".npz", ".onnx", ".ot", ".parquet", ".pb", ".pickle", ".pkl", ".pt", ".pth", ".rar", ".safetensors"),
        *(".tar", ".tflite", ".tgz", ".wasm", ".xz", ".zip", ".zst"),
    )
).encode()


@dataclass(frozen=True)
class Entry:
    """One file of a commit. A large one (`lfs`) is known to git by its pointer only."""

    blob: Blob
    lfs: bool

    @property
    def oid(self) -> str:
        return git_oid("blob", self.blob.pointer) if self.lfs else self.blob.git_oid

    @property
    def etag(self) -> str:
        return self.blob.sha256 if self.lfs else self.blob.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parents: tuple[str, ...]
    tree: Mapping[str, Entry]
    title: str
    message: str
    author: str
    date: datetime


@dataclass
class PullRequest:
    num: int
    title: str
    description: str
    author: str
    date: datetime
    base: str  # the commit that it forked from
    status: str = "draft"
    merge_commit: str | None = None


@dataclass
class Repo:
    kind: Kind
    id: str
    private: bool
    gated: Gated
    created: datetime
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # "heads/main", "tags/v1", "pr/1" -> oid
    pulls: dict[int, PullRequest] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)  # users let into a private or gated repo
    uploaded: set[str] = field(default_factory=set)  # sha256 of large files that this repo may point to
    downloads: int = 0
    likes: int = 0
    security: dict[str, Any] = field(default_factory=lambda: {"scansDone": True, "filesWithIssues": []})
    memo: dict[str, Any] = field(default_factory=dict)  # by commit, filled by `tags.describe`

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, tag, `refs/...` or (at least 7 digits of) a commit hash.

        Raises:
            HubError: 404 RevisionNotFound.
        """
        for name in (f"heads/{revision}", f"tags/{revision}", revision.removeprefix("refs/")):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if re.fullmatch(r"[0-9a-f]{7,40}", revision):
            for oid, commit in list(self.commits.items()):
                if oid.startswith(revision):
                    return commit
        raise errors.revision_not_found(revision)

    def history(self, commit: Commit) -> Iterable[Commit]:
        """`commit` and its first parents, newest first."""
        yield commit
        while commit.parents:
            commit = self.commits[commit.parents[0]]
            yield commit


@dataclass
class User:
    name: str
    token: str
    role: Literal["read", "write"]
    orgs: tuple[str, ...]

    def owns(self, repo_id: str) -> bool:
        return repo_id.split("/")[0] in (self.name, *self.orgs)


class HubStore:
    """All repos and users. Writers hold `lock`; readers see immutable commits."""

    def __init__(self, root: Path) -> None:
        self.blobs = BlobStore(root)
        self.repos: dict[tuple[Kind, str], Repo] = {}
        self.users: dict[str, User] = {}  # by token
        self.lock = threading.RLock()
        self._clock = datetime.now(UTC)

    def now(self) -> datetime:
        """Strictly increasing, so that an order by date is never a tie."""
        with self.lock:
            self._clock = max(datetime.now(UTC), self._clock + timedelta(milliseconds=1))
            return self._clock

    # access

    def user(self, token: str | None) -> User | None:
        if token is None:
            return None
        if token not in self.users:
            raise errors.bad_token()
        return self.users[token]

    def visible(self, repo: Repo, user: User | None) -> bool:
        return not repo.private or (user is not None and (user.owns(repo.id) or user.name in repo.readers))

    def repo(self, kind: Kind, repo_id: str, user: User | None) -> Repo:
        """Raises: HubError: RepoNotFound, also for a private repo of others."""
        repo = self.repos.get((kind, repo_id))
        if repo is None or not self.visible(repo, user):
            raise errors.repo_not_found(signed_in=user is not None)
        return repo

    def check_readable(self, repo: Repo, user: User | None) -> None:
        """Files of a gated repo go to its owner and to the users granted access."""
        if repo.gated and not (user is not None and (user.owns(repo.id) or user.name in repo.readers)):
            raise errors.gated(repo.id, signed_in=user is not None)

    def check_writable(self, repo_id: str, user: User | None) -> User:
        if user is None:
            raise errors.sign_in_first()
        if user.role != "write" or not user.owns(repo_id):
            raise errors.forbidden(f"You don't have the rights to write to {repo_id} with this token")
        return user

    # changes

    def create(
        self,
        kind: Kind,
        repo_id: str,
        author: str,
        *,
        private: bool = False,
        gated: Gated = False,
        date: datetime | None = None,
    ) -> Repo:
        """A repo with one commit that holds `.gitattributes`. Raises KeyError when it exists."""
        with self.lock:
            if (kind, repo_id) in self.repos:
                raise KeyError(f"{kind} {repo_id!r} exists already; use commit() to change it")
            repo = Repo(kind, repo_id, private, gated, date or self.now())
            self.repos[kind, repo_id] = repo
            tree = {".gitattributes": Entry(self.blobs.add(GITATTRIBUTES), lfs=False)}
            self.commit(repo, tree, "initial commit", "", author, date=date)
            return repo

    def commit(
        self,
        repo: Repo,
        tree: Mapping[str, Entry],
        title: str,
        message: str,
        author: str,
        *,
        ref: str = "heads/main",
        parents: tuple[str, ...] = (),
        date: datetime | None = None,
    ) -> Commit:
        with self.lock:
            date = date or self.now()
            parent_lines = "".join(f"parent {oid}\n" for oid in parents)
            who = f"{author} <{author}@localhost> {int(date.timestamp())} +0000"
            text = f"tree {tree_oid(tree)}\n{parent_lines}author {who}\ncommitter {who}\n\n{title}\n\n{message}"
            commit = Commit(git_oid("commit", text.encode()), parents, dict(tree), title, message, author, date)
            repo.commits[commit.oid] = commit
            repo.refs[ref] = commit.oid
            repo.uploaded.update(entry.blob.sha256 for entry in tree.values() if entry.lfs)
            return commit

    def entry(self, path: str, content: Content, tree: Mapping[str, Entry]) -> Entry:
        """A file as a commit would hold it: large or not by the same rule as an upload."""
        blob = self.blobs.add(content)
        return Entry(blob, lfs=is_large(path, blob.size, blob.read(0, 512), tree))


def is_large(path: str, size: int, sample: bytes, tree: Mapping[str, Entry]) -> bool:
    """Whether the Hub keeps the file outside git: by `.gitattributes`, by size, or because it is binary."""
    name = path.rsplit("/", 1)[-1]
    if size == 0 or name in ("README.md", ".gitattributes"):
        return False
    patterns = GITATTRIBUTES
    if ".gitattributes" in tree:
        patterns = tree[".gitattributes"].blob.read()
    for line in patterns.decode("utf-8", "replace").splitlines():
        pattern, _, attributes = line.strip().partition(" ")
        if "filter=lfs" in attributes and (fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(path, pattern)):
            return True
    return size > LARGE or b"\0" in sample


def folders(tree: Mapping[str, Entry]) -> dict[str, str]:
    """Every folder of the tree with its git id; the root has the empty name."""
    children: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for path, entry in tree.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            children.setdefault("/".join(parts[:depth]), {})
        children["/".join(parts[:-1])][parts[-1]] = ("100644", entry.oid)
    oids: dict[str, str] = {}
    for folder in sorted(children, key=lambda name: name.count("/") + bool(name), reverse=True):
        # git orders a folder as if its name ended in a slash
        items = sorted(children[folder].items(), key=lambda item: item[0] + "/" * (item[1][0] == "40000"))
        body = b"".join(f"{mode} {name}\0".encode() + bytes.fromhex(oid) for name, (mode, oid) in items)
        oids[folder] = git_oid("tree", body)
        if folder:
            parent, _, name = folder.rpartition("/")
            children[parent][name] = ("40000", oids[folder])
    return oids


def tree_oid(tree: Mapping[str, Entry]) -> str:
    return folders(tree)[""]
