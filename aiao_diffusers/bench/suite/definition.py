"""A suite: models x data x marks x attacks x strengths x seeds, read from YAML and checked before anything is computed.

name: example
models: {emoji: {path: base, data: latents/noto.safetensors}}   # a folder or a Hub repository, and the owner's data
data: {twemoji: latents/twemoji.safetensors}                    # what attackers train on; a folder of images too
marks: {ours: {method: aiao, steps: 600, keys: 3}}
attacks:
  - {attack: prune, amount: [0.3, 0.5], expect: verified}       # a list is a sweep
seeds: [0, 1, 2]
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ...errors import ConfigError
from .. import attacks as _attacks  # noqa: F401 (fills the registry)
from .. import peers as _peers  # noqa: F401 (fills the registry)
from ..registry import ATTACKS, METHODS, build, known, same_kind
from ..suites import shipped


VERDICTS = ("verified", "not_verified")


@dataclass(frozen=True)
class ModelSpec:
    """A model to mark: `path`, a folder or a Hub repository; `data`, what its owner embeds with."""

    path: str
    data: Any


@dataclass(frozen=True)
class QualitySpec:
    """What is measured of a suspect's quality.

    Args:
        samples (`int`): noised latents for noise losses, default 256; 0 leaves them out.
        images (`int`): pictures for CMMD and CLIP-score, default 0: none.
        clip (`str`): folder or Hub repository of the CLIP model. steps (`int`), guidance (`float`): of generation.
        prompts (`str`): text file of prompts, one a line; default: words of the tokenizer.
    """

    samples: int = 256
    images: int = 0
    clip: str = "clip"
    steps: int = 10
    guidance: float = 4.0
    prompts: str = ""

    @property
    def known_by(self) -> dict[str, Any]:
        """What decides the figures: without pictures none of what they are made and compared by."""
        return asdict(self) if self.images else {"samples": self.samples, "images": 0}

    def __post_init__(self) -> None:
        if self.samples < 0 or self.images < 0 or self.images == 1 or self.steps < 1:
            raise ConfigError(
                f"quality takes samples from 0, images 0 or from 2, steps from 1; got {self.samples}, {self.images}, {self.steps}."
            )


@dataclass(frozen=True)
class MarkSpec:
    """A marking method with its hyper-parameters.

    Args:
        method (`str`): registered name; options (`dict`): its fields.
        keys (`int`): independent keys and embeddings; 0: one a seed. Seed i uses key i modulo keys.
        checked (`bool`): whether the attacks' `expect` holds for this mark.
    """

    method: str
    options: dict[str, Any]
    keys: int = 0
    checked: bool = False

    def __post_init__(self) -> None:
        if self.keys < 0:
            raise ConfigError(f"a mark has keys from 0 (one a seed), got {self.keys}.")

    def build(self) -> Any:
        """The method, ready to embed and verify."""
        return build(METHODS[self.method], self.options, f"mark of method '{self.method}'")


@dataclass(frozen=True)
class Cell:
    """One question: is this mark found in this model after this attack?"""

    model: str
    data: str
    mark: str
    attack: str
    hyper: dict[str, Any]
    seed: int
    key: int
    expect: str | None

    @property
    def group(self) -> str:
        """Cells of one group share the attacked unmarked base of their control."""
        return json.dumps([self.model, self.data, self.attack, self.hyper, self.seed], sort_keys=True)


@dataclass(frozen=True)
class Suite:
    """A checked suite; fields as in the module's docstring. `alpha`, `trials`: of each verification; of its controls
    `cells.CONTROL_TRIALS` at most."""

    name: str
    models: dict[str, ModelSpec]
    data: dict[str, Any]
    marks: dict[str, MarkSpec]
    attacks: list[dict[str, Any]]
    seeds: list[int]
    alpha: float = 1e-6
    trials: int = 8
    quality: QualitySpec = field(default_factory=QualitySpec)

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.trials < 1:
            raise ConfigError(f"alpha lies between 0 and 1, trials from 1; got {self.alpha}, {self.trials}.")
        if any("expect" in entry for entry in self.attacks) and not any(m.checked for m in self.marks.values()):
            raise ConfigError("attacks have an 'expect' and no mark is 'checked: true': nothing would be checked.")

    def cells(self) -> Iterator[Cell]:
        """Every cell, groups together; seed by seed, so that a run cut short holds every attack with fewer seeds."""
        plans = itertools.product(self.seeds, self.models, self.data, self.attacks)
        for seed, model, data, entry in plans:
            for hyper in sweep(entry):
                for name, mark in self.marks.items():
                    key = seed % mark.keys if mark.keys else seed
                    expect = entry.get("expect") if mark.checked else None
                    yield Cell(model, data, name, entry["attack"], hyper, seed, key, expect)

    def identity(self, cell: Cell) -> str:
        """A hash over everything that decides a cell's outcome: what a resumed run knows finished cells by."""
        return digest(
            [
                *(asdict(self.models[cell.model]), self.data[cell.data], self.mark_identity(cell)),
                *(cell.attack, cell.hyper, cell.seed, self.alpha, self.trials, self.quality.known_by),
            ]
        )

    def mark_identity(self, cell: Cell) -> str:
        """A hash over model, method, hyper-parameters and key."""
        mark = self.marks[cell.mark]
        known_by, method = [asdict(self.models[cell.model]), mark.method, mark.options, cell.key], mark.build()
        # With its defaults: under others it is another mark. A marked folder's settings are its own.
        settings = method.settings if hasattr(method, "settings") else asdict(method)
        return digest(known_by if settings is None else [*known_by, settings])


def digest(value: Any) -> str:
    """First 16 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def sweep(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All combinations of an attack entry's lists, defaults filled in, each value checked."""
    declared = ATTACKS[entry["attack"]].hyper
    given = {n: v if isinstance(v, list) else [v] for n, v in entry.items() if n not in ("attack", "expect")}
    empty = [n for n, v in given.items() if not v]
    if empty:
        raise ConfigError(f"attack '{entry['attack']}': the sweep of {empty} is empty.")
    for values in itertools.product(*given.values()):
        chosen = dict(zip(given, values, strict=True))
        yield {n: same_kind(f"attack '{entry['attack']}': {n}", chosen.get(n, d), d) for n, d in declared.items()}


def read_suite(
    config: str | Path, *, model: str | None = None, data: str | None = None, clip: str | None = None
) -> Suite:
    """A suite from a YAML file, or one of `shipped` by its name.

    Args:
        model, data, clip (`str`, *optional*): replace the suite's models and their data, the attackers' data, and the CLIP model
            that pictures are compared by.
    Raises:
        ConfigError: no such file, not YAML, or an unknown, missing or impossible field.
    """
    path, named = Path(config), shipped()
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"no suite at '{path}': name a YAML file, or one of {sorted(named)}.")
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"'{path}' cannot be read as text ({error}).") from error
    else:
        text = named[known("suite", str(config), named)].read_text()
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"'{config}' is not YAML: {error}") from error
    return parse(document, model=model, data=data, clip=clip)


def parse(document: Any, *, model: str | None = None, data: str | None = None, clip: str | None = None) -> Suite:
    """`read_suite` of a document that is loaded already."""
    if not isinstance(document, dict):
        raise ConfigError("a suite is a mapping of fields: name, models, data, marks, attacks, seeds.")
    raw = {known("field of a suite", name, [f.name for f in fields(Suite)]): v for name, v in document.items()}
    for name in ("models", "data", "marks"):
        if not isinstance(raw.get(name), dict) or not raw[name]:
            raise ConfigError(f"the suite's '{name}' must map names to descriptions, got {raw.get(name)!r}.")
        if not all(isinstance(key, str) for key in raw[name]):
            raise ConfigError(f"names in the suite's '{name}' are text, got {list(raw[name])}: quote them.")
    if data is not None:
        raw["data"] = {data: data}
    if model is not None:
        first = build(ModelSpec, next(iter(raw["models"].values())), "the first model")
        raw["models"] = {model: {"path": model, "data": data if data is not None else first.data}}
    raw["models"] = {n: build(ModelSpec, v, f"model '{n}'") for n, v in raw["models"].items()}
    for what in (*(spec.data for spec in raw["models"].values()), *raw["data"].values()):
        _check_data(what)
    raw["marks"] = {n: _mark(n, v) for n, v in raw["marks"].items()}
    quality = raw.get("quality", {})
    if clip is not None and isinstance(quality, dict):
        quality = quality | {"clip": clip}
    raw["quality"] = build(QualitySpec, quality, "quality")
    if not isinstance(raw.get("attacks"), list) or not raw["attacks"]:
        raise ConfigError("the suite's 'attacks' must be a list of at least one attack.")
    raw["attacks"] = [_attack(entry) for entry in raw["attacks"]]
    if (
        not isinstance(raw.get("seeds"), list)
        or not all(type(s) is int and s >= 0 for s in raw["seeds"])
        or not raw["seeds"]
    ):
        raise ConfigError(f"the suite's 'seeds' must be a list of integers from 0, got {raw.get('seeds')!r}.")
    if len(set(raw["seeds"])) != len(raw["seeds"]):
        raise ConfigError(f"the suite's seeds repeat: {raw['seeds']}.")
    suite = build(Suite, raw, "the suite")
    seen: set[str] = set()
    for cell in suite.cells():
        identity = suite.identity(cell)
        if identity in seen:
            raise ConfigError(
                f"mark '{cell.mark}', attack '{cell.attack}' with {cell.hyper} stands twice in the suite."
            )
        seen.add(identity)
    return suite


def _check_data(value: Any) -> None:
    """A folder or file, or `{folder, where: {column: [values]}}`."""
    if isinstance(value, str):
        return
    if not isinstance(value, dict) or not isinstance(value.get("folder"), str):
        raise ConfigError(f"data is {value!r}: name a folder or a file, or a mapping with a 'folder'.")
    for name in value:
        known("field of data", name, ("folder", "where"))
    where = value.get("where", {})
    if not isinstance(where, dict) or not all(
        isinstance(values, list) and all(isinstance(value, str | int | float) for value in values)
        for values in where.values()
    ):
        raise ConfigError(f"data's 'where' is {where!r}: it maps columns to lists of texts or numbers.")


def _mark(name: str, entry: Any) -> MarkSpec:
    if not isinstance(entry, dict):
        raise ConfigError(f"mark '{name}' is {entry!r}: it must be a mapping with a 'method'.")
    options = dict(entry)
    method = known(f"method of mark '{name}'", options.pop("method", None), METHODS)
    own = {n: options.pop(n) for n in ("keys", "checked") if n in options}
    mark = build(MarkSpec, {"method": method, "options": options, **own}, f"mark '{name}'")
    mark.build()
    return mark


def _attack(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ConfigError(f"an attack is {entry!r}: it must be a mapping with the field 'attack'.")
    name = known("attack", entry.get("attack"), ATTACKS)
    for field_name in entry:
        known(f"hyper-parameter of attack '{name}'", field_name, ["attack", "expect", *ATTACKS[name].hyper])
    if "expect" in entry:
        known("verdict", entry["expect"], VERDICTS)
    list(sweep(entry))
    return entry
