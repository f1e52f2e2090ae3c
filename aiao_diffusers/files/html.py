"""Pages from the templates that lie beside their modules (`*.html.jinja`); whatever is filled in is escaped."""

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render_html(template: str, **values: Any) -> Markup:
    """A template, filled in.

    Args:
        template (`str`): its path below the package, as `scanning/report.html.jinja`.
        values: what it names; text is escaped, `Markup` is taken for HTML.
    Raises:
        jinja2.UndefinedError: the template names a value that was not given.
    """
    return Markup(_environment().get_template(template).render(values))


@lru_cache(maxsize=1)
def _environment() -> Environment:
    loader = PackageLoader("aiao_diffusers", "")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
