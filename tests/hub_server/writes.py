"""Routes that change a repo: create, delete, settings, card check, commit, branches, tags, pull requests."""

import base64
import binascii
import json
from typing import Any

from . import cards, errors
from .app import Context, route
from .store import Commit, Entry, PullRequest, Repo
from .uploads import large_entry, signed_in
from .wire import Response, as_json


def _named(context: Context, payload: dict[str, Any]) -> tuple[Any, str]:
    """The kind and id in the body of create and delete; without a namespace it is the user's own."""
    if context.user is None:
        raise errors.sign_in_first()
    repo_id = f"{payload.get('organization') or context.user.name}/{payload.get('name')}"
    if not cards.REPO_ID.fullmatch(repo_id):
        raise errors.bad_request(f"Invalid repo name: {repo_id}")
    return payload.get("type") or "model", repo_id


@route("POST", "/api/repos/create")
def create(context: Context) -> Response:
    payload = context.request.body.json()
    kind, repo_id = _named(context, payload)
    user = context.store.check_writable(repo_id, context.user)
    private = payload.get("visibility") == "private" or payload.get("private") is True
    with context.store.lock:
        exists = (kind, repo_id) in context.store.repos
        if not exists:
            context.store.create(kind, repo_id, user.name, private=private)
    answer: dict[str, object] = {
        "url": context.url_of(context.store.repos[kind, repo_id]),
        "name": repo_id,
        "id": repo_id,
    }
    if exists:
        raise errors.HubError(409, f"You already created this {kind} repo", fields=answer)
    return as_json(answer)


@route("DELETE", "/api/repos/delete")
def delete(context: Context) -> Response:
    kind, repo_id = _named(context, context.request.body.json())
    context.store.repo(kind, repo_id, context.user)
    context.store.check_writable(repo_id, context.user)
    context.store.repos.pop((kind, repo_id), None)
    return Response()


@route("PUT", "KIND/REPO/settings")
def settings(context: Context) -> Response:
    repo, _ = context.writable()
    payload = context.request.body.json()
    if payload.get("gated", False) not in ("auto", "manual", False):
        raise errors.bad_request(f"Invalid gated: {payload['gated']}")
    repo.gated = payload.get("gated", repo.gated)
    if "visibility" in payload or "private" in payload:
        repo.private = payload.get("visibility") == "private" or payload.get("private") is True
    return as_json({"gated": repo.gated, "private": repo.private})


@route("POST", "/api/validate-yaml")
def validate_yaml(context: Context) -> Response:
    content = context.request.body.json().get("content", "")
    found, warnings = cards.validate(content) if isinstance(content, str) else (["content must be text"], [])
    answer = {"errors": [{"message": m} for m in found], "warnings": [{"message": m} for m in warnings]}
    return as_json(answer, 400 if found else 200)


@route("POST", "KIND/REPO/commit/REV")
def commit(context: Context) -> Response:
    """One commit from newline-delimited JSON; on top of the revision, or of a new pull request with `create_pr`."""
    repo = context.repo()
    new_pull = context.request.flag("create_pr")
    if new_pull:
        signed_in(context)
    ref = context.writable_ref(repo, context.revision()) if not new_pull else ""
    lines = _lines(context.request.body.read())
    header = next((value for key, value in lines if key == "header"), {})
    if not header.get("summary"):
        raise errors.bad_request("A commit needs a summary")
    with context.store.lock:
        head = context.commit(repo)
        if header.get("parentCommit") not in (None, head.oid):
            raise errors.HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = _apply(context, repo, dict(head.tree), lines)
        title, description = header["summary"], header.get("description", "")
        if new_pull:
            pull = _open_pull(context, repo, head, title, description, status="open")
            ref = f"pr/{pull.num}"
        assert context.user is not None  # both ways in asked for a user
        author = context.user.name
        made = context.store.commit(repo, tree, title, description, author, ref=ref, parents=(head.oid,))
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{context.url_of(repo)}/commit/{made.oid}"}
    if new_pull:
        answer["pullRequestUrl"] = f"{context.url_of(repo)}/discussions/{pull.num}"
    return as_json({**answer, "hookOutput": ""})


def _lines(body: bytes) -> list[tuple[str, dict[str, Any]]]:
    try:
        items = [json.loads(line) for line in body.splitlines() if line.strip()]
        return [(item["key"], item["value"]) for item in items]
    except (ValueError, KeyError, TypeError) as error:
        raise errors.bad_request(f"Invalid commit payload: {error!r}") from error


def _apply(
    context: Context, repo: Repo, tree: dict[str, Entry], lines: list[tuple[str, dict[str, Any]]]
) -> dict[str, Entry]:
    """The tree after the operations, in their order."""
    head = context.commit(repo)
    for key, value in lines:
        path = value.get("path", "")
        if key == "header":
            continue
        _check_path(path)
        if key == "file":
            tree[path] = _small_entry(context, path, value)
        elif key == "lfsFile":
            tree[path] = large_entry(context, repo, value)
        elif key == "deletedFile":
            if path not in tree:
                error = errors.entry_not_found(path, head.oid)
                error.message = f"A file with this name doesn't exist: {path}"
                raise error
            del tree[path]
        elif key == "deletedFolder":
            prefix = path.rstrip("/") + "/"
            inside = [name for name in tree if name.startswith(prefix)]
            if not inside:
                raise errors.entry_not_found(path, head.oid)
            for name in inside:
                del tree[name]
        else:
            raise errors.bad_request(f"Unknown operation: {key}")
    for path in tree:
        parts = path.split("/")
        if any("/".join(parts[:depth]) in tree for depth in range(1, len(parts))):
            raise errors.bad_request(f"A file is in the way of {path}")
    return tree


def _check_path(path: str) -> None:
    parts = path.rstrip("/").split("/")
    if not path or "\0" in path or "\\" in path or any(part in ("", ".", "..", ".git") for part in parts):
        raise errors.bad_request(f"Invalid path: {path!r}")


def _small_entry(context: Context, path: str, value: dict[str, Any]) -> Entry:
    try:
        content = base64.b64decode(value["content"], validate=True) if value.get("encoding") == "base64" else None
    except (binascii.Error, KeyError) as error:
        raise errors.bad_request(f"Invalid content of {path}") from error
    content = value["content"].encode() if content is None else content
    if path == "README.md":
        found, _ = cards.validate(content.decode("utf-8", "replace"))
        if found:
            fields: dict[str, object] = {"errors": [{"message": message} for message in found]}
            raise errors.HubError(400, "Invalid metadata in README.md", fields=fields)
    return Entry(context.store.blobs.add(content), lfs=False)


@route("POST", "KIND/REPO/branch/REV")
def create_branch(context: Context) -> Response:
    repo, _ = context.writable()
    name = context.revision()
    if name.startswith("refs/"):
        raise errors.bad_request(f"Invalid reference for a branch: {name}")
    if f"heads/{name}" in repo.refs:
        raise errors.HubError(409, f"Reference already exists: refs/heads/{name}")
    repo.refs[f"heads/{name}"] = repo.resolve(context.request.body.json().get("startingPoint") or "main").oid
    return Response(201)


@route("DELETE", "KIND/REPO/branch/REV")
def delete_branch(context: Context) -> Response:
    repo, _ = context.writable()
    if context.revision() == "main":
        raise errors.forbidden("Cannot delete the default branch")
    return _delete_ref(repo, f"heads/{context.revision()}")


@route("POST", "KIND/REPO/tag/REV")
def create_tag(context: Context) -> Response:
    repo, _ = context.writable()
    name = str(context.request.body.json().get("tag", ""))
    if f"tags/{name}" in repo.refs:
        raise errors.HubError(409, f"Tag reference exists already: refs/tags/{name}")
    repo.refs[f"tags/{name}"] = context.commit(repo).oid
    return Response(201)


@route("DELETE", "KIND/REPO/tag/REV")
def delete_tag(context: Context) -> Response:
    repo, _ = context.writable()
    return _delete_ref(repo, f"tags/{context.revision()}")


def _delete_ref(repo: Repo, ref: str) -> Response:
    if repo.refs.pop(ref, None) is None:
        raise errors.revision_not_found(ref)
    return Response()


@route("POST", "KIND/REPO/discussions")
def create_discussion(context: Context) -> Response:
    repo = context.repo()
    signed_in(context)
    payload = context.request.body.json()
    if not payload.get("pullRequest"):
        raise errors.HubError(501, "This server has pull requests, no other discussions")
    with context.store.lock:
        pull = _open_pull(context, repo, repo.resolve("main"), payload["title"], payload.get("description", ""))
    return as_json({"num": pull.num, "url": f"{context.url_of(repo)}/discussions/{pull.num}", "pullRequest": True})


def _open_pull(
    context: Context, repo: Repo, base: Commit, title: str, description: str, status: str = "draft"
) -> PullRequest:
    assert context.user is not None  # callers asked for a user
    num = len(repo.pulls) + 1
    repo.pulls[num] = PullRequest(num, title, description, context.user.name, context.store.now(), base.oid, status)
    repo.refs[f"pr/{num}"] = base.oid
    return repo.pulls[num]


@route("POST", r"KIND/REPO/discussions/(?P<num>\d+)/merge")
def merge(context: Context) -> Response:
    """Lay the pull request's changes over `main`; 409 where both changed the same file."""
    repo, user = context.writable()
    pull = repo.pulls.get(int(context.parts["num"]))
    if pull is None:
        raise errors.HubError(404, "Discussion not found")
    with context.store.lock:
        base, main, ours = repo.commits[pull.base].tree, repo.resolve("main"), repo.resolve(f"refs/pr/{pull.num}")
        tree = dict(main.tree)
        for path in {*base, *ours.tree}:
            if ours.tree.get(path) == base.get(path):
                continue
            if main.tree.get(path) not in (base.get(path), ours.tree.get(path)):
                raise errors.HubError(409, f"Merge conflict in {path}")
            tree.pop(path, None)
            if path in ours.tree:
                tree[path] = ours.tree[path]
        parents = (main.oid, ours.oid)
        made = context.store.commit(repo, tree, f"{pull.title} (#{pull.num})", "", user.name, parents=parents)
        pull.status, pull.merge_commit = "merged", made.oid
    return as_json({"success": True})
