"""What a pipeline is asked for when its denoiser is listened to: prompts or rows, options, which of its parts; checked beforehand.

Source: our choice.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import DataError
from ..files.text import short
from .recording import Heard, record, without_guiders
from .schedule import config_of
from .setup import denoiser_of, placement
from .sites import unwrap
from .tokens import check_encoders, count_tokens, tokenizers, warn_of_cuts


ROWS = 3
PROMPTS = (
    "a lake",
    "a drawing of two old houses",
    "a photograph of a red lamp that stands on a long table by the window",
)
"""For a pipeline of which only the call is to be learnt: of different lengths, for some give a mask only where something is padded."""
STEPS = "num_inference_steps"


@dataclass(frozen=True)
class Request:
    """A pipeline with all that it may be asked for.

    Args:
        pipeline: the pipeline. denoiser (`nn.Module`): the part that is listened to.
        prompts (`Sequence[str]`, *optional*): None for a pipeline that takes none.
        rows (`Mapping[str, Sequence[Any]]`): options with an entry for each prompt. options: the others.
        off (`Mapping[str, float]`): options that switch guidance off.
    """

    pipeline: Any
    denoiser: nn.Module
    prompts: Sequence[str] | None
    rows: Mapping[str, Sequence[Any]]
    options: Mapping[str, Any]
    off: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The pipeline's class, for messages."""
        return type(self.pipeline).__name__

    def run(self, places: Sequence[int], steps: int, generator: torch.Generator, *, until: int = 0) -> Heard:
        """Run it unguided for the prompts, or rows, at `places`; `until`: as `listen`.

        Raises:
            NotRunError, NotUnderstoodError: as `record`.
        """
        with without_guiders(self.pipeline):
            return self._run({**self._given(places, steps, generator), **self.off}, generator, until=until)

    def run_guided(self, places: Sequence[int], steps: int, generator: torch.Generator, scale: float | None) -> Heard:
        """Run it with its own guidance, or with this scale, for the prompts at `places`.

        Raises:
            NotRunError: as `record`.
        """
        given = self._given(places, steps, generator)
        if scale is not None and "guidance_scale" in parameters_of(self.pipeline):
            given["guidance_scale"] = scale
        return self._run(given, generator, guided=True)

    def _given(self, places: Sequence[int], steps: int, generator: torch.Generator) -> dict[str, Any]:
        known = parameters_of(self.pipeline)
        given: dict[str, Any] = {
            STEPS: steps,
            "output_type": "latent",
            "generator": generator,
            "batch_size": len(places),
        }
        given = {name: value for name, value in given.items() if name in known}
        if self.prompts is not None:
            given = {**given, "prompt": [self.prompts[place] for place in places]}
            given.pop("batch_size", None)
        given |= {**self.options, **{name: _pick(value, places) for name, value in self.rows.items()}}
        if STEPS in self.options:  # fewer may never reach the denoiser
            given[STEPS] = max(steps, self.options[STEPS])
        return given

    def _run(self, given: Mapping[str, Any], generator: torch.Generator, **how: Any) -> Heard:
        # Some draw beside the generator that they are given: tokens of a language model.
        device, _ = placement(self.denoiser)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(generator.initial_seed())
            return record(self.pipeline, self.denoiser, given, **how)


def scheduler_config(pipeline: Any) -> dict[str, Any]:
    """`config_of` a pipeline's scheduler, in an order that does not hang on the process."""
    config = config_of(pipeline.scheduler)
    defaults = "_use_default_values"
    # Made from a set: without an order of its own, the hash of what holds it would differ from process to process.
    return {**config, defaults: sorted(config[defaults])} if defaults in config else config


def named_denoiser(pipeline: Any, name: str | None = None) -> tuple[str, nn.Module]:
    """The denoiser of a pipeline, or the part of this name, with its name.

    Raises:
        DataError: no pipeline with denoiser and scheduler, or it has no such part.
    """
    found = denoiser_of(pipeline) if name is None else getattr(pipeline, name, None)
    parts = getattr(pipeline, "components", {})
    if getattr(pipeline, "scheduler", None) is None or (name is None and (found is None or found is pipeline)):
        raise DataError(
            f"{type(pipeline).__name__} has no denoiser that a scheduler drives: pass a pipeline of diffusers' with a unet or a "
            "transformer, or name the denoiser (denoiser=)."
        )
    if not isinstance(found, nn.Module):
        modules = [part for part, value in parts.items() if isinstance(value, nn.Module)]
        raise DataError(f"{type(pipeline).__name__} has no denoiser {short(name)}: its modules are {modules}.")
    return name or next(part for part, value in parts.items() if value is found), unwrap(found)


def parameters_of(pipeline: Any) -> Mapping[str, inspect.Parameter]:
    """What the pipeline's call takes."""
    return inspect.signature(type(pipeline).__call__).parameters


def takes_prompts(pipeline: Any) -> bool:
    """Whether the pipeline is called with prompts."""
    return "prompt" in parameters_of(pipeline)


def _pick(value: Sequence[Any], places: Sequence[int]) -> Any:
    places = [min(place, len(value) - 1) for place in places]
    return value[places] if hasattr(value, "shape") else [value[i] for i in places]  # type: ignore[call-overload]


def check_prompts(pipeline: Any, prompts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """The prompts as a list, before anything runs; warns where some are longer than the pipeline reads.

    Raises:
        DataError: the pipeline takes none, there are none, or nothing reads them.
    """
    label = type(pipeline).__name__
    if not takes_prompts(pipeline):
        raise DataError(f"{label} takes no prompts: leave prompts= (--prompts) out.")
    found = [prompts] if isinstance(prompts, str) else list(prompts)
    if not found or not all(isinstance(prompt, str) for prompt in found):
        raise DataError(f"no prompts: {label} takes a list of texts, got {short(found)}.")
    check_encoders(pipeline)
    if prompts is not PROMPTS:
        warn_of_cuts(pipeline, found, options)
    return found


def check_options(pipeline: Any, options: Mapping[str, Any], rows: Mapping[str, Sequence[Any]], count: int) -> None:
    """Raises DataError when the pipeline's call does not take one of these, or `rows` do not have `count` entries each."""
    known = parameters_of(pipeline)
    unknown = sorted({*options, *rows} - known.keys())
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise DataError(f"{type(pipeline).__name__} takes no option {', '.join(map(short, unknown))}.")
    wrong = {name: len(value) for name, value in rows.items() if len(value) != count}
    if wrong:
        raise DataError(
            f"rows= gives {wrong} entries: {count} are needed, one for each prompt or row, and {ROWS} at least."
        )


def attempts(pipeline: Any, options: Mapping[str, Any]) -> Iterator[dict[str, float]]:
    """Options that switch guidance off: first none, for distilled models take a scale as one argument of one call."""
    scales = [
        name
        for name, parameter in parameters_of(pipeline).items()
        # One without a value follows another.
        if ("guidance_scale" in name or "cfg_scale" in name) and name not in options and parameter.default is not None
    ]
    yield {}
    for value in (1.0, 0.0) if scales else ():
        yield dict.fromkeys(scales, value)


def fewer_places(asked: Request, places: list[int]) -> list[int]:
    """All places but one, with the longest prompt and the shortest, so that both runs pad alike, and both do or neither."""
    if asked.prompts is None:
        return places[:-1]
    counts = [count_tokens(tokenizer, asked.prompts) for tokenizer in tokenizers(asked.pipeline).values()]
    lengths = [*zip(*counts, map(len, asked.prompts), strict=True)]
    middle = sorted(places, key=lengths.__getitem__)[1]
    return [place for place in places if place != middle]
