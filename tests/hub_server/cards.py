"""The YAML head of a README.md: read it safely, and say what the Hub's `validate-yaml` says about it.

`metadata` raises `CardError` on YAML that is no plain mapping: broken, with duplicate keys, anchors or aliases (a few
lines of which expand to gigabytes), nested or long beyond reason. `validate` returns errors and warnings for people.
"""

import re
from collections.abc import Callable
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]


MAX_BYTES = 100_000
MAX_DEPTH = 20
RELATIONS = ("adapter", "finetune", "merge", "quantized")
REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
LICENSES = frozenset(
    """
    afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 gemma gfdl gpl gpl-2.0 gpl-3.0 h-research intel-research isc lgpl lgpl-2.1 lgpl-3.0
    lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1
    open-mdw openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl zlib
    """.split()
)
PIPELINE_TAGS = frozenset(
    """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
    document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
    image-segmentation image-text-to-image image-text-to-text image-text-to-video image-to-3d image-to-image
    image-to-text image-to-video keypoint-detection mask-generation object-detection other question-answering
    reinforcement-learning robotics sentence-similarity summarization table-question-answering tabular-classification
    tabular-regression text-classification text-generation text-ranking text-to-3d text-to-audio text-to-image
    text-to-speech text-to-video time-series-forecasting token-classification translation
    unconditional-image-generation video-classification video-text-to-text video-to-video
    visual-document-retrieval visual-question-answering
    voice-activity-detection zero-shot-classification zero-shot-image-classification zero-shot-object-detection
    """.split()
)


class CardError(ValueError):
    """The head is not YAML that the server takes."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]
    """Safe YAML with each key once."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool | None):
            raise CardError("a key must be a scalar")
        if key in keys:
            raise CardError(f"duplicated mapping key: {key}")
        keys.add(key)
    mapping: dict[Any, Any] = loader.construct_mapping(node, deep=True)
    return mapping


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def head(content: str) -> str | None:
    """The text between the two `---` lines that open a README, None without them."""
    match = re.match(r"\s*---[ \t]*\r?\n((?:.*?\n)??)---[ \t]*(?:\r?\n|$)", content.lstrip("\ufeff"), re.DOTALL)
    return match[1] if match else None


def metadata(content: str) -> dict[str, Any]:
    """The card's metadata, empty when there is none. Raises: CardError."""
    text = head(content)
    if text is None or not text.strip():
        return {}
    if len(text.encode()) > MAX_BYTES:
        raise CardError(f"the metadata has more than {MAX_BYTES} bytes")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise CardError("anchors and aliases are not allowed")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise CardError(f"nested deeper than {MAX_DEPTH}")
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise CardError(f"YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise CardError("metadata must be a mapping")
    return data


def validate(content: str) -> tuple[list[str], list[str]]:
    """Errors (the upload is refused) and warnings of a README's text.

    A missing licence is a warning: the Hub itself takes such a card in silence, but nothing of ours should lack it.
    """
    try:
        data = metadata(content)
    except CardError as error:
        return [str(error)], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card"]
    found = [check(data) for check in _CHECKS]
    return [e for errors, _ in found for e in errors], [w for _, warnings in found for w in warnings]


_Found = tuple[list[str], list[str]]


def _license(data: dict[str, Any]) -> _Found:
    values = _strings(data.get("license"))
    if "license" not in data:
        return [], ['"license" is missing']
    if values is None or not all(value in LICENSES for value in values):
        return [f'"license" must be one of [{", ".join(sorted(LICENSES))}]'], []
    errors = []
    if "license_name" in data and not re.fullmatch(r"[a-z0-9-.]+", str(data["license_name"])):
        errors.append('"license_name" must match /^[a-z0-9-.]+$/')
    return errors, []


def _base_model(data: dict[str, Any]) -> _Found:
    errors = []
    values = _strings(data.get("base_model"))
    if "base_model" in data:
        if values is None:
            errors.append('"base_model" must be a string or an array of strings')
        else:
            errors += [f'"base_model" "{v}" is not a valid model id' for v in values if not REPO_ID.fullmatch(v)]
    relation = data.get("base_model_relation")
    if "base_model_relation" in data and relation not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    return errors, []


def _lists(data: dict[str, Any]) -> _Found:
    errors = []
    tags = data.get("tags")
    if "tags" in data and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        errors.append('"tags" must be an array of strings')
    for name in ("language", "datasets", "metrics"):
        if name in data and _strings(data[name]) is None:
            errors.append(f'"{name}" must be a string or an array of strings')
    return errors, []


def _scalars(data: dict[str, Any]) -> _Found:
    errors = [
        f'"{name}" must be a string'
        for name in ("library_name", "pipeline_tag", "thumbnail")
        if name in data and not isinstance(data[name], str)
    ]
    tag = data.get("pipeline_tag")
    if isinstance(tag, str) and tag not in PIPELINE_TAGS:
        return errors, [f'The pipeline tag "{tag}" is not in the official list: {", ".join(sorted(PIPELINE_TAGS))}']
    return errors, []


def _model_index(data: dict[str, Any]) -> _Found:
    if "model-index" not in data:
        return [], []
    index = data["model-index"]
    if not isinstance(index, list):
        return ['"model-index" must be an array'], []
    errors = []
    for i, model in enumerate(index):
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"model-index[{i}].name" is required')
            continue
        results = model.get("results")
        if not isinstance(results, list):
            errors.append(f'"model-index[{i}].results" is required')
            continue
        for j, result in enumerate(results):
            errors += [f'"model-index[{i}].results[{j}].{path}" is required' for path in _missing(result)]
    return errors, []


def _missing(result: Any) -> list[str]:
    """What a result in model-index form lacks."""
    if not isinstance(result, dict):
        return ["task"]
    needed = (("task", "type"), ("dataset", "type"), ("dataset", "name"))
    missing = [
        f"{part}.{name}" for part, name in needed if not (isinstance(result.get(part), dict) and name in result[part])
    ]
    metrics = result.get("metrics")
    if not isinstance(metrics, list):
        return [*missing, "metrics"]
    for k, metric in enumerate(metrics):
        missing += [
            f"metrics[{k}].{name}" for name in ("type", "value") if not isinstance(metric, dict) or name not in metric
        ]
    return missing


def _strings(value: Any) -> list[str] | None:
    """A string or list of strings as a list; None for anything else."""
    if isinstance(value, str):
        return [value]
    return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None


_CHECKS: tuple[Callable[[dict[str, Any]], _Found], ...] = (_license, _base_model, _lists, _scalars, _model_index)
