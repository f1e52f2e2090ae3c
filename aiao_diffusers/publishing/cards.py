"""Model cards: what a repository's README says about the watermark, and how it joins what the user wrote.

A card has a generated head (YAML) and a generated part (Markdown), each between its own pair of markers. A new push
replaces what lies between the markers and keeps all else byte for byte, except that the tag joins the user's list of tags.
Cards name owner, scheme and hashes; never a site, an amplitude or a timestep, which would tell an attacker where to look.

Templates lie in `hub_cards/`; the head's fields and their order are those of `huggingface_hub.ModelCardData`.
"""

import hashlib
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import PurePath
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.errors import HFValidationError
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id, yaml_dump

from ..errors import CardError, ConfigError
from ..mark.key import BOUND_SCHEME, SCHEME, SCHEMES
from ..mark.record import WatermarkRecord
from ..verification.claims import PROVES
from ..verification.report import VerificationReport
from .tasks import task_of


TAG = "aiao-watermark"
RELATIONS = ("adapter", "finetune", "merge", "quantized")
MAX_README_BYTES = 2**20
MAX_HEAD_BYTES, MAX_HEAD_DEPTH = 100_000, 20
BEGIN, END = "<!-- aiao:begin -->", "<!-- aiao:end -->"
HEAD_BEGIN, HEAD_END = "# aiao:begin", "# aiao:end"
_TEXT_HASH = re.compile(r"<!-- aiao:text ([0-9a-f]{64}) -->")


@dataclass(frozen=True)
class CardFields:
    """What the owner says about the model; goes into the card's YAML head. Fields left out are not written.

    Args:
        license (`str`): Hub licence id.
        license_name (`str`), license_link (`str`): for the licence `other`.
        base_model (`str`): Hub id of the model that this one was made from.
        relation (`str`, defaults to `finetune`): one of `RELATIONS`; written when `base_model` is given.
        pipeline_tag (`str`), tags, datasets (tuple of `str`): as on the Hub.
        results (tuple of `huggingface_hub.EvalResult`): written as model-index; see also `eval_results_yaml`.
    Raises:
        ConfigError: a relation or base model id that the Hub does not know.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    relation: str = "finetune"
    pipeline_tag: str | None = None
    tags: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    results: tuple[EvalResult, ...] = ()

    def __post_init__(self) -> None:
        if self.relation not in RELATIONS:
            raise ConfigError(f"relation {self.relation!r} is not one of {', '.join(RELATIONS)}.")
        if self.base_model is not None:
            try:
                validate_repo_id(self.base_model)
            except HFValidationError as error:
                raise ConfigError(f"base_model {self.base_model!r} is no Hub id of the form 'user/name'.") from error

    def head(self, model_name: str) -> dict[str, Any]:
        """The fields given, as the Hub spells them."""
        data = ModelCardData(
            license=self.license,
            license_name=self.license_name,
            license_link=self.license_link,
            base_model=self.base_model,
            base_model_relation=self.relation if self.base_model else None,
            pipeline_tag=self.pipeline_tag,
            datasets=list(self.datasets) or None,
            eval_results=list(self.results) or None,
            model_name=model_name if self.results else None,
        )
        return data.to_dict()


@dataclass(frozen=True)
class Card:
    """A generated card.

    Args:
        title (`str`): heading of a README that has no text yet.
        head (`dict`): fields that must hold; a README that says otherwise raises.
        body (`str`): the generated part without its markers.
        defaults (`dict`): fields for a README that does not have them.
        tags (tuple of `str`): added to the README's own.
    """

    title: str
    head: dict[str, Any]
    body: str
    defaults: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = (TAG,)

    def __str__(self) -> str:
        return self.joined("")

    def joined(self, readme: str) -> str:
        """The README with this card in it: markers replaced in place, or the card added after the user's text.

        Raises:
            CardError: the README's head is no plain YAML mapping, contradicts this card, or a marker is missing.
        """
        head, body = _split_head(readme)
        before, _, after = _split_at_markers(head, HEAD_BEGIN, HEAD_END)
        own_head = before + after
        own = _parse_head(own_head)
        for name, value in self.head.items():
            if name in own and own[name] != value:
                raise CardError(
                    f"README.md says {name}: {_short(own[name])}, the call says {_short(value)}: change one of them."
                )
        if "tags" in own:
            for tag in self.tags:
                own_head = _add_tag(own_head, tag)
        ours = {name: value for name, value in {**self.defaults, **self.head}.items() if name not in own}
        if "tags" not in own:
            ours["tags"] = list(dict.fromkeys(self.tags))
        generated = yaml_dump(ours, sort_keys=False).strip() if ours else ""
        block = "\n".join(line for line in (HEAD_BEGIN, generated, HEAD_END) if line)
        own_head = own_head.strip("\r\n")
        head = f"---\n{own_head}\n{block}\n---\n" if own_head else f"---\n{block}\n---\n"

        before, old, after = _split_at_markers(body, BEGIN, END)
        if not (before + after).strip():
            before, after = f"\n# {self.title}\n\n", "\n"
        elif not old:
            before += "" if before.endswith("\n\n") else "\n" if before.endswith("\n") else "\n\n"
            after = "\n"
        said = hashlib.sha256((own_head + before + after).encode()).hexdigest()
        return f"{head}{before}{BEGIN}\n<!-- aiao:text {said} -->\n{self.body.strip()}\n{END}{after}"


def is_untouched(readme: str) -> bool:
    """Whether the text outside the markers is what the last push left there."""
    head, body = _split_head(readme)
    before, _, after = _split_at_markers(head, HEAD_BEGIN, HEAD_END)
    above, block, below = _split_at_markers(body, BEGIN, END)
    stated = _TEXT_HASH.search(block)
    own = (before + after).strip("\r\n") + above + below
    return stated is not None and stated[1] == hashlib.sha256(own.encode()).hexdigest()


def own_text(readme: str) -> str:
    """The README without the generated parts."""
    head, body = _split_head(readme)
    before, _, after = _split_at_markers(head, HEAD_BEGIN, HEAD_END)
    above, _, below = _split_at_markers(body, BEGIN, END)
    return before + after + above + below


def marked_model(
    record: WatermarkRecord,
    record_sha256: str,
    repo_id: str,
    fields: CardFields | None = None,
    pipeline: str | None = None,
) -> Card:
    """Card of a marked model: what the mark means for those who use it, the commitment and the record's hash.

    Args:
        record (`WatermarkRecord`): of the mark.
        record_sha256 (`str`): of the file `aiao/watermark.json`, as `sha256sum` prints it.
        repo_id (`str`): where the model will be, `user/name`.
        fields (`CardFields`, *optional*): what the owner says about the model.
        pipeline (`str`, *optional*): name of its pipeline's class, by which the card names the task and a call.
    """
    fields, name, task = fields or CardFields(), repo_id.split("/")[-1], task_of(pipeline, record.denoiser)
    defaults = {"license": "unknown", "library_name": "diffusers", "pipeline_tag": task.tag}
    body = _render(
        "marked_model",
        repo_id=repo_id,
        record_sha256=record_sha256,
        task=task,
        lineage=record.lineage is not None,
        paths=record.lineage is None or not record.lineage["only"],
        **_describe_claim(record.owner, record.commitment, record.scheme),
    )
    return Card(_escape(name), fields.head(name), body, defaults, tags=(*fields.tags, TAG))


def _public_label(report: VerificationReport, role: str, label: str) -> str:
    """A label without the folders of this machine; that of a Hub's repository is kept whole."""
    return label if role in report.source else PurePath(label).name


def finetune_report(
    report: VerificationReport,
    record: WatermarkRecord,
    record_sha256: str,
    repo_id: str,
    fields: CardFields | None = None,
) -> Card:
    """Card that states a verified descendant's report: verdict, p-value, controls and hashes; no site, no look.

    Raises:
        ConfigError: the report's verdict is not `verified`: a card claims nothing less; or it is not on what runs.
    """
    if not report.verified or report.log10_p is None or report.bit_accuracy is None:
        raise ConfigError(f"the report on {report.suspect!r} says {report.verdict}: a card needs a verified one.")
    if report.asks_lineage:
        raise ConfigError(
            f"the report on {report.suspect!r} is on lineage, by {report.lineage_source}, and this card states what runs: of an "
            "adapter, verify it with base= first; a mark that is a lineage carrier alone has no such card."
        )
    fields, name = fields or CardFields(), repo_id.split("/")[-1]
    task = fields.pipeline_tag or task_of(None, record.denoiser).tag
    bank: dict[str, Any] = {
        "task_type": task,
        "dataset_type": "aiao-probe-bank",
        "dataset_name": "probe bank of the watermark record",
    }
    measured = (
        EvalResult(**bank, metric_type="log10_p", metric_value=round(report.log10_p, 1)),
        EvalResult(**bank, metric_type="verification_rate", metric_value=report.verification_rate),
    )
    head = CardFields(**{**vars(fields), "results": (*fields.results, *measured)}).head(name)
    low, high = report.verification_rate_ci or (0.0, 1.0)
    body = _render(
        "finetune_report",
        suspect=_escape(_public_label(report, "suspect", report.suspect)),
        base=_escape(_public_label(report, "base", report.base or "")),
        log10_p=f"{report.log10_p:.1f}",
        floor=f"{report.log10_p_floor:.1f}",
        alpha=f"{report.alpha:g}",
        bits=f"{report.bit_accuracy:.3f}",
        rate=f"{report.verification_rate:.2f}",
        interval=f"{low:.2f} to {high:.2f}",
        trials=report.trials,
        proves=PROVES[report.proves],
        controls=[(name, _describe_control(value)) for name, value in report.controls.items()],
        warnings=[_escape(text) for text in report.warnings],
        assumption=_escape(report.dating.get("assumption", "")),
        weights_sha256=report.hashes.get("suspect") or "not stated",
        record_sha256=record_sha256,
        **_describe_claim(record.owner, record.commitment, record.scheme),
    )
    defaults = {"license": "unknown", "library_name": "diffusers", "pipeline_tag": task}
    return Card(_escape(name), head, body, defaults, tags=(*fields.tags, TAG))


def commitment(
    owner: str,
    commitment: str,
    *,
    record_sha256: str | None = None,
    fields: CardFields | None = None,
    scheme: str = SCHEME,
) -> Card:
    """Card of a repository that holds a commitment alone, made before the model is published.

    Args:
        owner (`str`): the key's.
        commitment (`str`): `Commitment.sha256`; of scheme `aiao-1`, `WatermarkKey.commitment`.
        record_sha256 (`str`, *optional*): when the record exists already.
        fields (`CardFields`, *optional*): licence and tags.
        scheme (`str`): of the commitment, default `aiao-1`.
    """
    fields = fields or CardFields()
    body = _render("commitment", record_sha256=record_sha256, **_describe_claim(owner, commitment, scheme))
    title = f"Watermark commitment of {_escape(owner)}"
    return Card(title, fields.head(title), body, {"license": "unknown"}, tags=(*fields.tags, TAG, "aiao-commitment"))


def eval_results_yaml(results: Sequence[EvalResult]) -> str:
    """Results as a file of `.eval_results/`, the form that the Hub's leaderboards read; '' when none names a Hub data set.

    A result's `dataset_type` is the data set's Hub id, its `dataset_config` the benchmark's task (`default` without one).
    """
    entries = []
    for result in results:
        if "/" not in result.dataset_type:
            continue
        dataset = {"id": result.dataset_type, "task_id": result.dataset_config or "default"}
        if result.dataset_revision:
            dataset["revision"] = result.dataset_revision
        entry: dict[str, Any] = {"dataset": dataset, "value": result.metric_value}
        if result.source_url:
            entry["source"] = {
                "url": result.source_url,
                **({"name": result.source_name} if result.source_name else {}),
            }
        entries.append({**entry, "notes": result.metric_name or result.metric_type})
    return str(yaml_dump(entries, sort_keys=False)) if entries else ""


def _describe_claim(owner: str, commitment: str, scheme: str) -> dict[str, Any]:
    if not re.fullmatch(r"[0-9a-f]{64}", commitment):
        raise ConfigError(f"a commitment is 64 hex digits, got {_short(commitment)}.")
    if scheme not in SCHEMES:
        raise ConfigError(f"a scheme is {' or '.join(SCHEMES)}, got {_short(scheme)}.")
    bound = scheme == BOUND_SCHEME
    return {"owner": _escape(owner), "scheme": scheme, "bound": bound, "commitment": commitment}


def _describe_control(value: Any) -> str:
    """A control of a report in words."""
    items = value.items() if isinstance(value, dict) else [("value", value)]
    items = [(name, v) for name, v in items if not isinstance(v, list | tuple)]  # a histogram's counts
    return ", ".join(
        f"{name.replace('_', ' ')} {v:.2f}" if isinstance(v, float) else f"{name} {v}" for name, v in items
    )


def _render(template: str, **values: Any) -> str:
    source = resources.files("aiao_diffusers.hub_cards").joinpath(f"{template}.md.jinja").read_text("utf-8")
    # A missing value must raise, not print as nothing.
    return jinja2.Environment(undefined=jinja2.StrictUndefined).from_string(source).render(values)


def _escape(text: str) -> str:
    """Text that people chose (names of owners, suspects, warnings), as one line of Markdown that formats nothing."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 120 else shown[:117] + "..."


def _split_head(readme: str) -> tuple[str, str]:
    """The YAML between the two `---` lines ('' without them), and the text after it."""
    text = readme.removeprefix("\ufeff")
    match = REGEX_YAML_BLOCK.search(text)
    return (match[2] + "\n", text[match.end() :]) if match else ("", text)


def _split_at_markers(text: str, begin: str, end: str) -> tuple[str, str, str]:
    """Text before, between and after the markers, which go with what is between them; without markers: text, '', ''.

    Raises:
        CardError: one marker without the other, or more than one pair.
    """
    marks = [(m.start(), m.end(), m[0]) for m in re.finditer(f"{re.escape(begin)}|{re.escape(end)}", text)]
    if not marks:
        return text, "", ""
    if [mark for _, _, mark in marks] != [begin, end]:
        raise CardError(f"README.md must hold '{begin}' and '{end}' once each and in this order: mend or remove them.")
    return text[: marks[0][0]], text[marks[0][0] : marks[1][1]], text[marks[1][1] :]


def _parse_head(head: str) -> dict[str, Any]:
    """The user's YAML fields; refuses what the Hub refuses and what could not be read at a bounded cost."""
    if len(head.encode()) > MAX_HEAD_BYTES:
        raise CardError(f"the YAML head of README.md has more than {MAX_HEAD_BYTES} bytes: shorten it.")
    try:
        depth = 0
        for event in yaml.parse(head, Loader=yaml.SafeLoader):
            # A few lines of aliases expand to gigabytes; the Hub refuses them as well.
            if isinstance(event, yaml.AliasEvent):
                raise CardError("the YAML head of README.md has aliases, which the Hub refuses: write the values out.")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_HEAD_DEPTH:
                raise CardError(f"the YAML head of README.md is nested deeper than {MAX_HEAD_DEPTH}: flatten it.")
        data = yaml.safe_load(head)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, CardError):
            raise
        raise CardError(f"the YAML head of README.md cannot be read ({_short(str(error))}): mend it.") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CardError(f"the YAML head of README.md is a {type(data).__name__}: it must map names to values.")
    return data


def _add_tag(head: str, tag: str) -> str:
    """`head` with one more entry first in its `tags`; every other byte stays."""
    tags: Any = _parse_head(head)["tags"]
    if tags is not None and not isinstance(tags, list):
        raise CardError(f"'tags' in README.md must be a list, it is {_short(tags)}.")
    if tag in (tags or []):
        return head
    node = next(value for key, value in yaml.compose(head, Loader=yaml.SafeLoader).value if key.value == "tags")
    start, end = node.start_mark.index, node.end_mark.index
    if tags is None:
        changed = f"{head[:start]} [{tag}]{head[end:]}"
    elif node.flow_style:
        changed = f"{head[: start + 1]}{tag}{', ' if tags else ''}{head[start + 1 :]}"
    else:
        changed = f"{head[:start]}- {tag}\n{' ' * node.start_mark.column}{head[start:]}"
    if _parse_head(changed)["tags"] != [tag, *(tags or [])]:
        raise CardError(f"'tags' in README.md is written in an unusual way: add '{tag}' to it by hand.")
    return changed
