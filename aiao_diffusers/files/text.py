"""Text of strangers for messages, logs and tables."""


def short(value: object, limit: int = 120) -> str:
    """`repr` cut to `limit` characters: a hostile key of a megabyte must not become the error message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
