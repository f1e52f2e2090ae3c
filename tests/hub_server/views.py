"""JSON as the Hub's API writes it: repos, files, commits, refs, pull requests."""

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from .store import Commit, Entry, PullRequest, Repo, folders
from .tags import describe


LISTED = ("_id", "id", "modelId", "likes", "trendingScore", "private", "downloads", "tags", "createdAt")


def timestamp(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{date.microsecond // 1000:03d}Z"


def repo_info(repo: Repo, commit: Commit, *, blobs: bool = False, security: bool = False) -> dict[str, Any]:
    """Everything `model_info` may show at one commit."""
    facts = describe(repo, commit)
    base_models = facts.pop("base_models")
    info = {
        "_id": hashlib.sha256(f"{repo.kind} {repo.id}".encode()).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.id.split("/")[0] if "/" in repo.id else None,
        "sha": commit.oid,
        "lastModified": timestamp(commit.date),
        "createdAt": timestamp(repo.created),
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": repo.downloads,
        "likes": repo.likes,
        "trendingScore": 0,
        "spaces": [],
        "siblings": [sibling(path, entry, blobs) for path, entry in sorted(commit.tree.items())],
        "usedStorage": sum(
            {e.etag: e.blob.size for c in list(repo.commits.values()) for e in c.tree.values()}.values()
        ),
        "baseModels": base_models,
        **facts,
    }
    if security:
        info["securityRepoStatus"] = repo.security
    return {name: value for name, value in info.items() if value is not None}


def listed(info: Mapping[str, Any], *, full: bool, card: bool, config: bool, expand: list[str]) -> dict[str, Any]:
    """The part of `repo_info` that a listing shows."""
    if expand:
        names = {"_id", "id", *expand}
    else:
        names = {*LISTED, "pipeline_tag", "library_name"}
        names |= {"author", "gated", "lastModified", "sha", "siblings", "disabled"} if full else set()
        names |= {"cardData"} if card else set()
        names |= {"config"} if config else set()
    return {name: value for name, value in info.items() if name in names}


def sibling(path: str, entry: Entry, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": path}
    view: dict[str, Any] = {"rfilename": path, "size": entry.blob.size, "blobId": entry.oid}
    if entry.lfs:
        view["lfs"] = {"sha256": entry.blob.sha256, "size": entry.blob.size, "pointerSize": len(entry.blob.pointer)}
    return view


def tree(repo: Repo, commit: Commit, folder: str = "", *, recursive: bool, expand: bool) -> list[dict[str, Any]]:
    """Folders and files under `folder`, by path; all levels when `recursive`."""
    prefix = f"{folder}/" if folder else ""
    paths: dict[str, Entry | str] = {**folders(commit.tree), **commit.tree}
    return [
        path_info(repo, commit, path, item, expand)
        for path, item in sorted(paths.items())
        if path.startswith(prefix) and path != folder and (recursive or "/" not in path[len(prefix) :])
    ]


def path_info(repo: Repo, commit: Commit, path: str, item: Entry | str, expand: bool) -> dict[str, Any]:
    """One file, or one folder given by its git id."""
    if isinstance(item, str):
        view: dict[str, Any] = {"type": "directory", "oid": item, "size": 0, "path": path}
    else:
        view = {"type": "file", "oid": item.oid, "size": item.blob.size, "path": path}
        if item.lfs:
            view["lfs"] = {"oid": item.blob.sha256, "size": item.blob.size, "pointerSize": len(item.blob.pointer)}
    if expand:
        last = _last_commit(repo, commit, path)
        view["lastCommit"] = {"id": last.oid, "title": last.title, "date": timestamp(last.date)}
        if view["type"] == "file":
            status = "unsafe" if path in _flagged(repo) else "safe"
            view["securityFileStatus"] = {"status": status, "avScan": None, "pickleImportScan": None}
    return view


def _flagged(repo: Repo) -> list[str]:
    return [issue.get("path", "") for issue in repo.security.get("filesWithIssues", [])]


def _last_commit(repo: Repo, commit: Commit, path: str) -> Commit:
    """The newest commit that left the path as it is."""
    content = _content(commit, path)
    last = commit
    for older in repo.history(commit):
        if _content(older, path) != content:
            break
        last = older
    return last


def _content(commit: Commit, path: str) -> list[tuple[str, str]]:
    return [(p, e.oid) for p, e in sorted(commit.tree.items()) if p == path or p.startswith(f"{path}/")]


def commit_info(commit: Commit) -> dict[str, Any]:
    return {
        "id": commit.oid,
        "title": commit.title,
        "message": commit.message,
        "authors": [{"user": commit.author}],
        "date": timestamp(commit.date),
    }


def refs(repo: Repo, *, pull_requests: bool) -> dict[str, Any]:
    def group(prefix: str) -> list[dict[str, str]]:
        return [
            {"name": name.removeprefix(prefix), "ref": f"refs/{name}", "targetCommit": oid}
            for name, oid in sorted(repo.refs.items())
            if name.startswith(prefix)
        ]

    view: dict[str, Any] = {"branches": group("heads/"), "tags": group("tags/"), "converts": []}
    if pull_requests:
        view["pullRequests"] = group("pr/")
    return view


def pull_request(repo: Repo, pull: PullRequest, *, details: bool = False) -> dict[str, Any]:
    view: dict[str, Any] = {
        "num": pull.num,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": timestamp(pull.date),
        "status": pull.status,
        "repo": {"name": repo.id, "type": repo.kind},
        "isPullRequest": True,
    }
    if details:
        comment = {"edited": False, "hidden": False, "latest": {"raw": pull.description}}
        event = {"id": f"{pull.num:024x}", "type": "comment", "createdAt": view["createdAt"], "author": view["author"]}
        view["events"] = [{**event, "data": comment}]
        view["changes"] = {"base": "refs/heads/main", "mergeCommitId": pull.merge_commit}
        view["filesWithConflicts"] = []
        view["diff"] = None
    return view
