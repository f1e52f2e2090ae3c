"""`resolve`: a file's metadata (HEAD) and bytes (GET, whole or a range).

Small files come from the Hub itself. Large ones are a 302 to a signed link of another origin, as on the real Hub:
their metadata is in the redirect, and a client that sends its token along is refused.
"""

import re
from urllib.parse import quote

from . import errors
from .app import KINDS, Context, route
from .blobs import Blob
from .wire import Response


@route("GET", "PLAIN/resolve/REV/PATH")
@route("GET", "KIND/REPO/resolve/REV/PATH")
def resolve(context: Context) -> Response:
    repo = context.repo()
    commit = context.commit(repo)
    context.store.check_readable(repo, context.user)
    path = context.parts["path"]
    entry = commit.tree.get(path)
    if entry is None:
        raise errors.entry_not_found(path, commit.oid)
    reading = context.request.method == "GET" and not entry.lfs
    blob = context.app.faults.swapped(repo.id, path, reading=reading)
    headers = {
        "X-Repo-Commit": commit.oid,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(path.rsplit('/', 1)[-1])};",
        "ETag": f'"{entry.etag if blob is None else (blob.sha256 if entry.lfs else blob.git_oid)}"',
        "X-Linked-Size": str((blob or entry.blob).size),
    }
    if not entry.lfs:
        return content(context, blob or entry.blob, headers)
    headers["X-Linked-Etag"] = headers["ETag"]
    headers["Location"] = context.app.sign(f"/files/{repo.kind}s/{repo.id}/{entry.blob.sha256}/{path}")
    return Response(302, f"Found. Redirecting to {headers['Location']}".encode(), headers)


@route("GET", r"/files/(?P<kind>models|datasets|spaces)/REPO/(?P<oid>[0-9a-f]{64})/PATH", host="cdn")
def large_file(context: Context) -> Response:
    context.app.check_signed(context.request)
    blob = context.store.blobs.get(context.parts["oid"])
    if blob is None or (KINDS[context.parts["kind"]], context.parts["repo"]) not in context.store.repos:
        raise errors.HubError(404, "NoSuchKey")
    reading = context.request.method == "GET"
    other = context.app.faults.swapped(context.parts["repo"], context.parts["path"], reading=reading)
    return content(context, other or blob, {"ETag": f'"{blob.sha256}"', "Accept-Ranges": "bytes"})


def content(context: Context, blob: Blob, headers: dict[str, str]) -> Response:
    """200, 206 or 416 for one blob. A `Range` that makes no sense is ignored, as HTTP has it."""
    headers = {"Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"\s*bytes=(\d*)-(\d*)\s*", context.request.headers.get("range", ""))
    if context.request.method == "HEAD" or match is None or not (match[1] or match[2]):
        return Response(200, (blob, 0, blob.size), headers)
    if match[1]:
        start, end = int(match[1]), min(int(match[2] or blob.size), blob.size - 1)
    else:
        start, end = max(0, blob.size - int(match[2])), blob.size - 1
    if match[1] and match[2] and int(match[2]) < start:
        return Response(200, (blob, 0, blob.size), headers)
    if start >= blob.size or end < start:
        raise errors.HubError(416, "Range Not Satisfiable", headers={"Content-Range": f"bytes */{blob.size}"})
    headers["Content-Range"] = f"bytes {start}-{end}/{blob.size}"
    return Response(206, (blob, start, end - start + 1), headers)
