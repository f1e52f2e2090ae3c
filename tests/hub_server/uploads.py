"""Routes that take large files: preupload, the LFS batch, whole and multipart PUT, verify.

A repo may only point to large files that were uploaded to it: a client that merely knows a hash gets nothing.
"""

import base64
import fnmatch
from collections.abc import Iterator
from math import ceil
from typing import Any

from . import errors
from .app import KINDS, Context, route
from .blobs import Blob
from .store import Entry, Repo, is_large
from .wire import Response, as_json


LFS_JSON = {"Content-Type": "application/vnd.git-lfs+json"}


@route("POST", "KIND/REPO/preupload/REV")
def preupload(context: Context) -> Response:
    """For each file: large or regular, ignored or not, and the id it has now, by which the client drops no-ops."""
    repo = context.repo()
    if context.request.flag("create_pr"):
        signed_in(context)
    else:
        context.writable_ref(repo, context.revision())
    commit = context.commit(repo)
    payload = context.request.body.json()
    ignore = payload.get("gitIgnore")
    if ignore is None and ".gitignore" in commit.tree:
        ignore = commit.tree[".gitignore"].blob.read().decode("utf-8", "replace")
    files = []
    for file in payload["files"]:
        path, entry = file["path"], commit.tree.get(file["path"])
        large = is_large(path, file["size"], base64.b64decode(file["sample"]), commit.tree)
        # an id of the other sort would never equal the client's
        known = entry.etag if entry is not None and entry.lfs == large else None
        mode = "lfs" if large else "regular"
        files.append({"path": path, "uploadMode": mode, "shouldIgnore": _ignored(path, ignore or ""), "oid": known})
    return as_json({"files": files})


def signed_in(context: Context) -> None:
    """Enough to open a pull request: whoever may read may propose."""
    if context.user is None:
        raise errors.sign_in_first()
    if context.user.role != "write":
        raise errors.forbidden("This token may only read")


def _ignored(path: str, patterns: str) -> bool:
    """The plain part of `.gitignore`: names, globs, folders, `!`; the last match counts."""
    ignored = False
    for line in patterns.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        negated, pattern = pattern.startswith("!"), pattern.removeprefix("!").strip("/")
        parts = path.split("/")
        names = ["/".join(parts[: i + 1]) for i in range(len(parts))] + parts
        if any(fnmatch.fnmatch(name, pattern) for name in names):
            ignored = not negated
    return ignored


@route("POST", r"PLAIN\.git/info/lfs/objects/batch")
def batch(context: Context) -> Response:
    """What is there needs no action; the rest gets signed links, in parts when it is large and the client can."""
    repo = context.repo()
    payload = context.request.body.json()
    if "ref" in payload:
        context.writable_ref(repo, payload["ref"]["name"])
    else:
        signed_in(context)
    multipart = "multipart" in payload.get("transfers", [])
    objects = []
    for item in payload["objects"]:
        answer: dict[str, Any] = {"oid": item["oid"], "size": item["size"], "authenticated": True}
        if item["oid"] not in repo.uploaded:
            answer["actions"] = _actions(context, repo, item["oid"], int(item["size"]), multipart)
        objects.append(answer)
    return as_json({"transfer": "multipart" if multipart else "basic", "objects": objects}, headers=LFS_JSON)


def _actions(context: Context, repo: Repo, oid: str, size: int, multipart: bool) -> dict[str, Any]:
    app, place = context.app, f"{repo.kind}s/{repo.id}/{oid}"
    verify = {"href": f"{context.url_of(repo)}.git/info/lfs/objects/verify", "header": {}}
    if not multipart or size <= app.multipart_above:
        return {"upload": {"href": app.sign(f"/uploads/{place}", size=size)}, "verify": verify}
    header = {"chunk_size": str(app.part_size)}
    for number in range(1, ceil(size / app.part_size) + 1):
        header[str(number)] = app.sign(f"/parts/{place}/{number}")
    return {"upload": {"href": app.sign(f"/api/complete/{place}", host="hub"), "header": header}, "verify": verify}


def _target(context: Context) -> Repo:
    """The repo of a signed link; it may be gone by now."""
    context.app.check_signed(context.request)
    repo = context.store.repos.get((KINDS[context.parts["kind"]], context.parts["repo"]))
    if repo is None:
        raise errors.HubError(404, "NoSuchBucket")
    return repo


_PLACE = r"(?P<kind>models|datasets|spaces)/REPO/(?P<oid>[0-9a-f]{64})"


@route("PUT", f"/uploads/{_PLACE}", host="cdn")
def put_whole(context: Context) -> Response:
    repo = _target(context)
    blob = context.store.blobs.receive(context.request.body.chunks())
    _accept(context, repo, blob)
    return Response(200, headers={"ETag": f'"{blob.sha256}"'})


@route("PUT", rf"/parts/{_PLACE}/(?P<number>\d+)", host="cdn")
def put_part(context: Context) -> Response:
    _target(context)
    blob = context.store.blobs.receive(context.request.body.chunks())
    context.app.parts[context.parts["repo"], context.parts["oid"], int(context.parts["number"])] = blob.sha256
    return Response(200, headers={"ETag": f'"{blob.sha256}"'})


@route("POST", f"/api/complete/{_PLACE}")
def complete(context: Context) -> Response:
    repo = _target(context)
    parts = context.request.body.json()["parts"]

    def assembled() -> Iterator[bytes]:
        for part in parts:
            sha256 = context.app.parts.get((repo.id, context.parts["oid"], part["partNumber"]))
            blob = context.store.blobs.get(sha256) if sha256 else None
            if blob is None or part["etag"].strip('"') != sha256:
                raise errors.bad_request(f"InvalidPart: {part['partNumber']}")
            yield from blob.slice()

    _accept(context, repo, context.store.blobs.receive(assembled()))
    return as_json({"success": True})


def _accept(context: Context, repo: Repo, blob: Blob) -> None:
    if blob.sha256 != context.parts["oid"]:
        raise errors.bad_request(f"XAmzContentSHA256Mismatch: the bytes have the hash {blob.sha256}")
    repo.uploaded.add(blob.sha256)


@route("POST", r"PLAIN\.git/info/lfs/objects/verify")
def verify(context: Context) -> Response:
    repo = context.repo()
    payload = context.request.body.json()
    uploaded_blob(context, repo, payload["oid"], payload["size"])
    return as_json({}, headers=LFS_JSON)


def uploaded_blob(context: Context, repo: Repo, oid: str, size: int | None) -> Blob:
    """Raises: HubError: 400 when this repo was never given these bytes."""
    blob = context.store.blobs.get(oid) if oid in repo.uploaded else None
    if blob is None or size not in (None, blob.size):
        raise errors.bad_request(
            f"Your push was rejected because an LFS pointer pointed to a file that does not exist: {oid}"
        )
    return blob


def large_entry(context: Context, repo: Repo, value: dict[str, Any]) -> Entry:
    return Entry(uploaded_blob(context, repo, value["oid"], value.get("size")), lfs=True)
