"""The report as one HTML page: no script, no link, no file beside it."""

import base64
import io
from typing import Any

from markupsafe import Markup

from ..files.html import render_html
from .claims import UNPROVEN
from .outcome import VerificationOutcome
from .plots import panels


ALTERNATIVES = {
    "sites": "Share of agreeing bits at each site against the null",
    "null": "Histogram of wrong response patterns, the exact null and the observed value",
    "subpaths": "Heat map of agreeing bits by armed in-site and read out-site",
    "rate": "Verification rate with its 95% interval",
}


def page(outcome: VerificationOutcome) -> str:
    """`outcome` as a whole HTML document; errors as `section`."""
    title = f"{outcome.verdict}: {outcome.suspect}"
    return str(render_html("verification/report.html.jinja", title=title, **_values(outcome)))


def section(outcome: VerificationOutcome) -> Markup:
    """`outcome` as a part of a page. Whatever comes from a suspect, such as its name, is escaped.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return render_html("verification/section.html.jinja", **_values(outcome))


def _values(outcome: VerificationOutcome) -> dict[str, Any]:
    pictures = {name: png(figure) for name, figure in panels(outcome).items()}
    return {"r": outcome, "unproven": UNPROVEN[outcome.proves], "pictures": pictures, "alternatives": ALTERNATIVES}


def png(figure: Any) -> str:
    """A figure as base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
