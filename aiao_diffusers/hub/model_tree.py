"""Who could carry a mark: the model tree of a base on the Hub, and lists, authors and searches for undeclared children.

The Hub keeps a child's own word as the tags `base_model:<id>` and `base_model:<relation>:<id>`; one listing by the first
gives all children of a model with their relations. The walk is by levels; cycles, duplicates and listings without an end
stop it nowhere.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from ..errors import ConfigError, HubError
from ..files.text import short
from .remote import REPO_ID, TIMEOUT, retry


RELATIONS = ("adapter", "finetune", "merge", "quantized")
LIMIT = 10_000
MAX_IDLE_PAGES = 3
"""Pages in a row without a new entry, after which a listing is taken for endless."""


@dataclass(frozen=True)
class Node:
    """A repository to look at.

    Args:
        relation: to its nearest declared ancestor, one of `RELATIONS`; None when undeclared or unnamed.
        lineage: the declared ancestors, from the scanned base down; empty when undeclared.
        found_by: `tree`, `list`, `author NAME` or `search TEXT`. sha: the commit that the listing names.
    """

    repo_id: str
    relation: str | None
    lineage: tuple[str, ...]
    found_by: str
    sha: str | None = None
    last_modified: str | None = None


@dataclass(frozen=True)
class Tree:
    """All repositories found, each once, and what may be missing from them."""

    nodes: tuple[Node, ...]
    warnings: tuple[str, ...]


def walk(
    base: str,
    *,
    repos: Sequence[str] = (),
    authors: Sequence[str] = (),
    search: Sequence[str] = (),
    relations: Sequence[str] = RELATIONS,
    since: str | date | None = None,
    limit: int = LIMIT,
    api: HfApi | None = None,
) -> Tree:
    """The descendants of `base` of all levels, and the repositories named otherwise.

    Args:
        repos: repository ids to include whatever they declare. authors, search: as the Hub's listing takes them.
        relations: what to keep of the tree; the walk itself goes through all of them, for the child of a fine-tune may be
            an adapter. since: keep what was modified on or after this day (ISO text or date).
        limit (`int`, defaults to 10,000): repositories at most.
    Raises:
        ConfigError: unknown relation or unreadable date. HubError: the children of `base` cannot be listed.
    """
    unknown = [r for r in relations if r not in RELATIONS]
    if unknown:
        raise ConfigError(f"relation {short(unknown[0])} is unknown: use {', '.join(RELATIONS)}.")
    day, found = _parse_day(since), _Walk(base, api or HfApi(), limit)
    for name in repos:
        found.add(Node(name, None, (), "list"))
    found.descend()
    for label, values in (("author", authors), ("search", search)):
        for value in values:
            found.list_by(label, value)
    if len(found.seen) > limit:
        found.warnings.append(f"stopped at {limit} repositories (limit): there may be more.")
    nodes = [node for node in found.seen.values() if node.found_by != "base"]
    kept = [n for n in nodes if n.found_by == "list" or _keeps(n, relations, day)]
    return Tree(tuple(kept), tuple(dict.fromkeys(found.warnings)))


class _Walk:
    """Repositories met so far, each once, and what was missed."""

    def __init__(self, base: str, api: HfApi, limit: int) -> None:
        self.base, self.api, self.limit = base, api, limit
        self.seen: dict[str, Node] = {base: Node(base, None, (), "base")}
        self.warnings: list[str] = []

    def add(self, node: Node) -> bool:
        """Whether the repository is new, and there was room for it."""
        if node.repo_id in self.seen or len(self.seen) > self.limit:
            return False
        self.seen[node.repo_id] = node
        return True

    def descend(self) -> None:
        """All levels below the base; HubError where its own children cannot be listed."""
        level = [self.seen[self.base]]
        while level and len(self.seen) <= self.limit:
            following: list[Node] = []
            for parent in level:
                try:
                    for child in self._list_children(parent):  # one by one: a listing may break off
                        following.append(child)
                except HubError as error:
                    if parent.repo_id == self.base:
                        raise
                    self.warnings.append(f"the children of {parent.repo_id} could not be listed: {error}")
            level = following

    def _list_children(self, parent: Node) -> Iterator[Node]:
        """Those that are new in the tree."""
        for item in self._list([("filter", f"base_model:{parent.repo_id}")]):
            child = _read_node(item, (*parent.lineage, parent.repo_id), parent.repo_id, "tree")
            listed = self.seen.get(child.repo_id)
            if listed is not None and listed.found_by == "list":
                # An explicit name that turns out to be in the tree keeps its place and gains its lineage.
                self.seen[child.repo_id] = child
                yield child
            elif self.add(child):
                yield child

    def list_by(self, label: str, value: str) -> None:
        """The models of an author or a search, which declare nothing."""
        for item in self._list([(label, value)]):
            self.add(_read_node(item, (), self.base, f"{label} {value}"))

    def _list(self, query: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
        return _list_models(self.api, query, self.warnings, self.limit)


def _keeps(node: Node, relations: Sequence[str], day: str | None) -> bool:
    if node.found_by == "tree" and node.relation is not None and node.relation not in relations:
        return False
    # Dates of the Hub are ISO text in UTC, so text order is time order; without a date nothing is left out.
    return day is None or node.last_modified is None or node.last_modified[:10] >= day


def _parse_day(since: str | date | None) -> str | None:
    if since is None:
        return None
    try:
        return (since if isinstance(since, date) else datetime.fromisoformat(since)).strftime("%Y-%m-%d")
    except (TypeError, ValueError) as error:
        raise ConfigError(f"since {short(since)} is no ISO date such as 2026-01-31.") from error


def _read_node(item: dict[str, Any], lineage: tuple[str, ...], parent: str, found_by: str) -> Node:
    tags = [tag for tag in item.get("tags") or () if isinstance(tag, str)]
    relation = next((r for r in RELATIONS if f"base_model:{r}:{parent}" in tags), None)
    return Node(item["id"], relation, lineage, found_by, item.get("sha"), item.get("lastModified"))


def _list_models(
    api: HfApi, query: list[tuple[str, str]], warnings: list[str], limit: int
) -> Iterator[dict[str, Any]]:
    """Entries of a listing of models. Not through `HfApi.list_models`: it would follow empty pages for ever."""
    what = f"the listing {'='.join(query[0])}"
    url: str | None = f"{api.endpoint}/api/models"
    params: Any = [*query, ("limit", "1000"), *(("expand", name) for name in ("sha", "lastModified", "tags"))]
    seen: set[str] = set()
    idle = 0
    while url is not None:

        def ask(url: str = url, params: Any = params) -> tuple[Any, str | None]:
            response = get_session().get(
                url, params=params, headers=build_hf_headers(token=api.token), timeout=TIMEOUT
            )
            hf_raise_for_status(response)
            try:
                return response.json(), response.links.get("next", {}).get("url")
            except ValueError as error:
                raise OSError("the answer is no JSON") from error

        page, url = retry(ask, what)
        params = None  # the link to the next page carries them
        fresh = [
            item
            for item in (page if isinstance(page, list) else ())
            if isinstance(item, dict) and isinstance(item.get("id"), str) and item["id"] not in seen
        ]
        idle = 0 if fresh else idle + 1
        for item in fresh:
            seen.add(item["id"])
            if REPO_ID.fullmatch(item["id"]):
                yield item
        if url is not None and (idle >= MAX_IDLE_PAGES or len(seen) > limit):
            warnings.append(f"{what} does not end; stopped after {len(seen)} repositories.")
            return
        if url is not None and not url.startswith(f"{api.endpoint}/"):
            # The token goes with every request, so a link to another host is not followed.
            warnings.append(f"{what} continues on another host; stopped after {len(seen)} repositories.")
            return
