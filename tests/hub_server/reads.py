"""Routes that read: who am I, list of models, repo info, tree, paths, commits, refs, pull requests."""

from typing import Any
from urllib.parse import parse_qs

from . import errors, views
from .app import Context, route
from .pages import page
from .store import Entry, folders
from .wire import Response, as_json


SORTS = {"lastModified", "createdAt", "downloads", "likes", "trendingScore"}


@route("GET", "/api/whoami-v2")
def whoami(context: Context) -> Response:
    user = context.user
    if user is None:
        raise errors.sign_in_first()
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "admin"} for org in user.orgs]
    auth = {"type": "access_token", "accessToken": {"displayName": user.name, "role": user.role}}
    return as_json(
        {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth}
    )


@route("GET", "KIND")
def list_repos(context: Context) -> Response:
    """`filter` may repeat or hold commas; all of its tags must be there. The largest of the sort key comes first."""
    request = context.request
    wanted = {tag for value in request.values("filter") for tag in value.split(",") if tag}
    wanted |= set(request.values("pipeline_tag")) | set(request.values("tags"))
    sort = request.one("sort") or "trendingScore"
    if sort not in SORTS:
        raise errors.bad_request(f"Invalid sort: {sort}")
    author, search = request.one("author"), (request.one("search") or "").lower()
    gated = request.one("gated")
    infos: list[dict[str, Any]] = []
    for repo in list(context.store.repos.values()):
        if repo.kind != context.kind or not context.store.visible(repo, context.user):
            continue
        if author is not None and repo.id.split("/")[0] != author:
            continue
        if gated is not None and (gated.lower() in ("true", "1")) != bool(repo.gated):
            continue
        if not all(word in repo.id.lower() for word in search.split()):
            continue
        info = views.repo_info(repo, repo.resolve("main"))
        if wanted <= {*info["tags"], info.get("pipeline_tag"), info.get("library_name")}:
            infos.append(info)
    infos.sort(key=lambda info: info["id"])
    infos.sort(key=lambda info: info[sort], reverse=request.one("direction") != "1")
    expand = request.values("expand")
    full, card, config = (request.flag(name) for name in ("full", "cardData", "config"))
    items = [views.listed(info, full=full, card=card, config=config, expand=expand) for info in infos]
    ghost = {"tags": sorted(wanted), "private": False, "likes": 0, "downloads": 0}
    return page(
        context, items, lambda item: [item["id"]], lambda n: {"id": f"ghost/{n}", "modelId": f"ghost/{n}", **ghost}
    )


@route("GET", "KIND/REPO/revision/REV")
@route("GET", "KIND/REPO")
def repo_info(context: Context) -> Response:
    repo = context.repo()
    request = context.request
    expand = request.values("expand")
    security = request.flag("securityStatus") or "securityRepoStatus" in expand
    info = views.repo_info(repo, context.commit(repo), blobs=request.flag("blobs"), security=security)
    if expand:
        info = views.listed(info, full=False, card=False, config=False, expand=expand)
    return as_json(info)


@route("GET", "KIND/REPO/auth-check")
def auth_check(context: Context) -> Response:
    context.store.check_readable(context.repo(), context.user)
    return Response()


@route("GET", "KIND/REPO/tree/REV")
@route("GET", "KIND/REPO/tree/REV/PATH")
def tree(context: Context) -> Response:
    repo = context.repo()
    commit = context.commit(repo)
    folder = context.parts.get("path", "").strip("/")
    if folder and folder not in folders(commit.tree):
        raise errors.entry_not_found(folder, commit.oid)
    recursive, expand = context.request.flag("recursive"), context.request.flag("expand")
    items = views.tree(repo, commit, folder, recursive=recursive, expand=expand)
    ghost = {"type": "file", "oid": "0" * 40, "size": 1}
    return page(context, items, lambda item: [item["path"]], lambda n: {**ghost, "path": f"ghost/{n}.txt"})


@route("POST", "KIND/REPO/paths-info/REV")
def paths_info(context: Context) -> Response:
    """Unknown paths are left out."""
    repo = context.repo()
    commit = context.commit(repo)
    if "json" in context.request.headers.get("content-type", ""):
        form: dict[str, Any] = context.request.body.json()
    else:
        form = parse_qs(context.request.body.read().decode())
        form["expand"] = form.get("expand", ["false"])[0] == "true"
    known: dict[str, Entry | str] = {**folders(commit.tree), **commit.tree}
    paths = [path.strip("/") for path in form.get("paths", [])]
    expand = bool(form.get("expand"))
    return as_json(
        [views.path_info(repo, commit, path, known[path], expand) for path in paths if path in known and path]
    )


@route("GET", "KIND/REPO/commits/REV")
def commits(context: Context) -> Response:
    repo = context.repo()
    items = [views.commit_info(commit) for commit in repo.history(context.commit(repo))]
    return page(context, items, lambda item: [item["id"]], lambda n: {**items[-1], "id": f"{n:040x}"})


@route("GET", "KIND/REPO/refs")
def refs(context: Context) -> Response:
    return as_json(views.refs(context.repo(), pull_requests=context.request.flag("include_prs")))


@route("GET", "KIND/REPO/discussions")
def discussions(context: Context) -> Response:
    repo = context.repo()
    status = context.request.one("status")
    open_states = ("draft", "open")
    shown = [
        p for p in repo.pulls.values() if status in (None, "all") or (status == "open") == (p.status in open_states)
    ]
    return as_json(
        {"count": len(shown), "start": 0, "discussions": [views.pull_request(repo, pull) for pull in shown]}
    )


@route("GET", r"KIND/REPO/discussions/(?P<num>\d+)")
def discussion(context: Context) -> Response:
    repo = context.repo()
    pull = repo.pulls.get(int(context.parts["num"]))
    if pull is None:
        raise errors.HubError(404, "Discussion not found")
    return as_json(views.pull_request(repo, pull, details=True))
