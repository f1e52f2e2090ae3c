"""The report as one HTML page: no script, no link, no file beside it."""

import base64
import io
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from .claims import UNPROVEN
from .plots import panels
from .report import describe_control


if TYPE_CHECKING:
    from .report import VerificationReport

ALTERNATIVES = {
    "sites": "Share of agreeing bits at each out-site against the null",
    "null": "Histogram of wrong response patterns, the exact null and the observed value",
    "subpaths": "Heat map of agreeing bits by armed in-site and read out-site",
    "rate": "Verification rate with its 95% interval",
}
DOCUMENT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem } summary { cursor: pointer; margin: .5rem 0 }
.verdict { padding: .2rem .6rem; border-radius: .3rem; color: #fff; background: #777 }
.verified { background: #1f7a3d } .not_verified { background: #9a3324 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd }
td { overflow-wrap: anywhere } img { max-width: 100% } code { font-size: .85em }
</style></head><body>
{{ body }}
</body></html>
"""
SECTION = """<h1><span class="verdict {{ r.verdict }}">{{ r.verdict.replace("_", " ") }}</span> {{ r.suspect }}</h1>
{% if r.reason %}<p>Reason: {{ r.reason }}</p>{% endif %}
<h2>What was proven</h2><p>{{ proven }}</p>
{% if r.log10_p is not none %}
<p>If the suspect had been made without knowledge of the key's secret, a reading this good or better would have had a chance
of at most 10<sup>{{ "%.1f"|format(r.log10_p) }}</sup>; {{ r.alpha }} was asked for, and these
{{ r.sites|sum(attribute="channels") }} bits can reach 10<sup>{{ "%.1f"|format(r.log10_p_floor) }}</sup>. The p-value is
exact for any suspect, with {{ r.looks|length }} look{{ "s" if r.looks|length != 1 }} paid for.</p>
{% endif %}
<h2>What was not proven</h2><p>{{ unproven }}</p>
<h2>What was compared</h2>
<table>
<tr><th>suspect</th><td>{{ r.suspect }}</td><td><code>{{ r.hashes.get("suspect") or "not read" }}</code></td></tr>
<tr><th>base</th><td>{{ r.base or "none" }}</td><td><code>{{ r.hashes.get("base") or "" }}</code></td></tr>
<tr><th>record</th><td>of the marked model</td><td><code>{{ r.hashes.get("record") or "not read" }}</code></td></tr>
<tr><th>marked model</th><td>as published</td><td><code>{{ r.hashes.get("marked") or "not stated" }}</code></td></tr>
<tr><th>key</th><td>commitment</td><td><code>{{ r.hashes.get("commitment") or "not read" }}</code></td></tr>
</table>
<p>Hashes are SHA-256: of the weights in the narrowest dtype that holds them exactly, of an adapter file's tensors, of <code>aiao/watermark.json</code>.</p>
{% if r.log10_p is not none %}
<h2>What was read</h2>
<p>{{ r.trials }} plain trial{{ "s" if r.trials != 1 }}, {{ r.denoiser_evals }} denoiser evaluations, seed {{ r.seed }};
bit accuracy {{ "%.3f"|format(r.bit_accuracy) }}, chance .5.</p>
{% for name, data in pictures.items() %}<p><img alt="{{ alternatives[name] }}" src="data:image/png;base64,{{ data }}"></p>
{% endfor %}
<table><tr><th>out-site</th><th>channels</th><th>hits</th><th>log10 p</th></tr>
{% for s in r.sites %}<tr><td>{{ s.name }}</td><td>{{ s.channels }}</td><td>{{ s.hits }}</td><td>{{ "%.1f"|format(s.log10_p) }}</td></tr>
{% endfor %}</table>
<h2>Looks</h2>
<table><tr><th>look</th><th>trials</th><th>log10 p</th><th>paid for</th></tr>
{% for k in r.looks %}<tr><td>{{ k.label }}</td><td>{{ k.trials }}</td><td>{{ "%.1f"|format(k.log10_p) }}</td><td>{{ "%.1f"|format(k.log10_p_adjusted) }}</td></tr>
{% endfor %}</table>
{% endif %}
{% if controls or r.adapter or r.warnings %}<h2>Controls and warnings</h2><ul>
{% for name, fields in controls.items() %}<li>{{ name }}: {{ fields }}</li>
{% endfor %}{% if r.adapter %}<li>adapter: {{ r.adapter.modules }} modules changed by {{ "%.3g"|format(r.adapter.relative_norm) }} of their norm</li>{% endif %}
{% for text in r.warnings %}<li>warning: {{ text }}</li>
{% endfor %}</ul>{% endif %}
"""
HTML = Environment(autoescape=True, undefined=StrictUndefined)


def page(report: "VerificationReport") -> str:
    """`report` as a whole HTML document; errors as `section`."""
    return document(f"{report.verdict}: {report.suspect}", section(report))


def document(title: str, body: Markup) -> str:
    """A page with our style sheet; `body` is HTML already."""
    return HTML.from_string(DOCUMENT).render(title=title, body=body)


def section(report: "VerificationReport") -> Markup:
    """`report` as a part of a page. Whatever comes from a suspect, such as its name, is escaped.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    pictures = {name: png(figure) for name, figure in panels(report).items()}
    text = HTML.from_string(SECTION).render(
        r=report,
        proven=report.proves_in_words,
        unproven=UNPROVEN[report.proves],
        pictures=pictures,
        alternatives=ALTERNATIVES,
        controls={name: describe_control(fields) for name, fields in report.controls.items()},
    )
    return Markup(text)


def png(figure: Any) -> str:
    """A figure as base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    return base64.b64encode(buffer.getvalue()).decode()
