"""Cursor paging with a `Link` header, the same for every listing."""

import base64
import json
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlencode

from .app import Context
from .errors import bad_request
from .wire import Response, as_json


def page(
    context: Context, items: Sequence[Any], key: Callable[[Any], list[Any]], ghost: Callable[[int], Any]
) -> Response:
    """One page of `items`, which are in the order of `key` already.

    The cursor names the last entry seen, not its place: an entry added meanwhile shifts nothing.

    Args:
        key: identity of an entry, JSON values.
        ghost: invents the n-th entry for an endless listing.
    """
    request = context.request
    size = min(int(request.one("limit") or context.app.page_size), context.app.page_size)
    cursor = _decode(request.one("cursor"))
    start = 0
    if "after" in cursor:
        start = next((i + 1 for i, item in enumerate(items) if key(item) == cursor["after"]), len(items))
    shown = list(items[start : start + size])
    more: dict[str, Any] | None = {"after": key(shown[-1])} if shown and start + size < len(items) else None
    if request.endless is not None and more is None:
        turn = int(cursor.get("turn", 0))
        after = key(shown[-1]) if shown else cursor.get("after")
        more = {"after": after, "turn": turn + 1}
        if turn and request.endless.mode == "repeat":
            shown = list(items[-size:])
        elif turn and request.endless.mode == "fresh":
            shown = [ghost(turn * size + i) for i in range(size)]
    headers = {}
    if more is not None:
        query = [(name, value) for name, values in request.query.items() if name != "cursor" for value in values]
        query.append(("cursor", base64.urlsafe_b64encode(json.dumps(more).encode()).decode()))
        headers["Link"] = f'<{context.app.hub_url}{request.path}?{urlencode(query)}>; rel="next"'
    return as_json(shown, headers=headers)


def _decode(cursor: str | None) -> dict[str, Any]:
    if cursor is None:
        return {}
    try:
        return dict(json.loads(base64.urlsafe_b64decode(cursor)))
    except (ValueError, TypeError) as error:
        raise bad_request("Invalid cursor") from error
