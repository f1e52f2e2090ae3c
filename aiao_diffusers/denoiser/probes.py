"""Probes of a judge: what a pipeline gives its own denoiser for prompts and a seed that nobody but the judge chose.

A record brings a probe bank, which its writer may have crafted so that an unmarked model seems to answer. A judge who doubts it
makes inputs of their own: a pipeline runs with the judge's prompts and seed, and what it hands to its denoiser is kept (the clean
latents that it arrives at, the conditioning) with the noise schedule of its scheduler.

Source: our choice.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from ..errors import DataError
from ..files.atomic import write_bytes
from ..files.text import short
from .capture import capture_rows, learn
from .encode import read_prompts
from .inputs import CALL, LatentData
from .request import scheduler_config
from .schedule import describe_kind, has_betas, is_flow
from .setup import denoiser_of


FORMAT = "aiao-probes-1"
COUNT, STEPS = 8, 12


@dataclass(frozen=True)
class Probes:
    """Inputs for a reading, and where they come from.

    Args:
        data (`LatentData`): clean latents with conditioning, a row each.
        scheduler (`dict`): the pipeline's noise schedule, as diffusers' config.
        pipeline (`str`): what it was captured from, as the judge named it.
        seed (`int`): of the pipeline's noise.
        prompts_sha256 (`str`, *optional*): hash of the prompts as a JSON list; None for a pipeline that takes none.
    Raises:
        DataError: the scheduler is neither of betas nor of flow matching.
    """

    data: LatentData
    scheduler: Mapping[str, Any]
    pipeline: str
    seed: int
    prompts_sha256: str | None

    def __post_init__(self) -> None:
        if not has_betas(self.scheduler) and not is_flow(self.scheduler):
            name = self.scheduler.get("_class_name", "scheduler")
            raise DataError(
                f"the noise schedule of {short(self.pipeline)}, a {short(name)}, is of {describe_kind(self.scheduler)}: probes are "
                "captured from pipelines whose noise is of betas or of flow matching."
            )

    def _to_bytes(self) -> bytes:
        tensors = self.data.tensors()
        told: dict[str, Any] = {"pipeline": self.pipeline, "seed": self.seed, "prompts_sha256": self.prompts_sha256}
        told |= self.data.metadata() or {}
        # One line: safetensors keeps the metadata's entries in no fixed order.
        document = json.dumps(
            {"format": FORMAT, **told, "scheduler": dict(self.scheduler)}, sort_keys=True, default=_as_json
        )
        return save({n: v.contiguous() for n, v in tensors.items()}, {"aiao": document})

    @property
    def sha256(self) -> str:
        """Hash of the file as `save` writes it."""
        return hashlib.sha256(self._to_bytes()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """For a report: JSON-ready, without the tensors."""
        names = ("pipeline", "seed", "prompts_sha256", "sha256")
        return {"inputs": len(self.data), **{name: getattr(self, name) for name in names}}

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, whole or not at all."""
        path = Path(path)
        write_bytes(path, self._to_bytes())
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Probes":
        """Read what `save` wrote.

        Raises:
            DataError: missing, cut, or no file of probes.
        """
        data = LatentData.load(path)
        try:
            with safe_open(str(path), "pt") as file:
                told = json.loads((file.metadata() or {})["aiao"])
            right = told["format"] == FORMAT and isinstance(told["scheduler"], dict) and type(told["seed"]) is int
            right = right and isinstance(told["pipeline"], str) and isinstance(told["prompts_sha256"], str | None)
            right = right and isinstance(told.get(CALL), str | None)
        except (LookupError, RecursionError, TypeError, ValueError):
            right = False
        if not right:
            raise DataError(f"'{path}' is no file of probes: make one with `aiao probe PIPELINE -o {path}`.")
        if CALL in told:
            data = LatentData.from_tensors(load_file(path), {CALL: told[CALL]})
        return cls(data, told["scheduler"], told["pipeline"], told["seed"], told["prompts_sha256"])


def _as_json(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


@torch.no_grad()
def capture_probes(
    pipeline: Any,
    prompts: Sequence[str] | str | Path | None = None,
    seed: int = 0,
    *,
    count: int = COUNT,
    steps: int = STEPS,
    name: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Probes:
    """Run a pipeline and keep what it gives its denoiser.

    Args:
        pipeline: a diffusers pipeline of any family: the suspect's own, or another of its family.
        prompts (*optional*): a list, or a .txt or .json file of them; an input each. None for a pipeline that takes none.
        seed (`int`, defaults to 0): of the pipeline's noise.
        count (`int`, defaults to 8): inputs of a pipeline that takes no prompts.
        steps (`int`, defaults to 12): of sampling. The pipeline runs unguided, so that a row of its denoiser is a picture.
        name (`str`, *optional*): what the report calls the pipeline; default: its class.
        options (`Mapping[str, Any]`, *optional*): for the pipeline's call, such as height and width.
    Raises:
        DataError: prompts missing, unreadable or not taken; a pipeline that lacks parts, or whose denoiser or scheduler cannot be
            followed.
    """
    denoiser, scheduler = denoiser_of(pipeline), getattr(pipeline, "scheduler", None)
    if denoiser is None or denoiser is pipeline or scheduler is None:
        raise DataError(f"probes are captured from a pipeline, got {type(pipeline).__name__}: pass one of diffusers'.")
    label = name or type(pipeline).__name__
    asked = _prompts_for(pipeline, prompts, label)
    digest = None if asked is None else hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    if seed < 0 or count < 1 or steps < 1:
        raise DataError(f"seed must be at least 0, count and steps at least 1, got {seed}, {count} and {steps}.")
    config = scheduler_config(pipeline)
    make = partial(Probes, scheduler=config, pipeline=label, seed=seed, prompts_sha256=digest)
    # Refuses other schedules before the pipeline runs.
    make(LatentData(torch.zeros(1, 1, 1, 1), {}))
    return make(capture_rows(pipeline, asked or count, learn(pipeline, options=options), steps=steps, seed=seed))


def _prompts_for(pipeline: Any, prompts: Any, label: str) -> list[str] | None:
    takes = "prompt" in inspect.signature(type(pipeline).__call__).parameters
    if prompts is None:
        if takes:
            raise DataError(f"{label} takes prompts: pass prompts= (--prompts), a list or a file with one a line.")
        return None
    if not takes:
        raise DataError(f"{label} takes no prompts: leave prompts= (--prompts) out.")
    found = read_prompts(Path(prompts)) if isinstance(prompts, str | Path) else list(prompts)
    found = [prompt for prompt in found if isinstance(prompt, str) and prompt.strip()]
    if not found:
        raise DataError("no prompts: pass at least one that is not empty.")
    return found
