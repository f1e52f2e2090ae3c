"""Probes of a judge: what a pipeline gives its own denoiser for prompts and a seed that nobody but the judge chose.

A record brings a probe bank, which its writer may have crafted so that an unmarked model seems to answer. A judge who doubts it
makes inputs of their own: a pipeline runs with the judge's prompts and seed, and what it hands to its denoiser is kept (the clean
latents that it arrives at, the conditioning) with the noise schedule of its scheduler.

Source: our choice.
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from ..errors import DataError
from ..files.atomic import write_bytes
from ..files.text import short
from .encode import read_prompts
from .inputs import LatentData
from .schedule import has_betas
from .setup import denoiser_of
from .sites import unwrap


FORMAT = "aiao-probes-1"
COUNT, STEPS, BATCH = 8, 12, 16
_NOT_CONDITIONS = frozenset({"hidden_states", "return_dict", "sample", "timestep"})


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
        DataError: the scheduler is not made of betas.
    """

    data: LatentData
    scheduler: Mapping[str, Any]
    pipeline: str
    seed: int
    prompts_sha256: str | None

    def __post_init__(self) -> None:
        if not has_betas(self.scheduler):
            name = self.scheduler.get("_class_name", "scheduler")
            raise DataError(
                f"the noise schedule of {short(self.pipeline)}, a {short(name)}, is not made of betas: probes are captured from "
                "pipelines of Stable Diffusion's kind."
            )

    def _to_bytes(self) -> bytes:
        tensors = self.data.tensors()
        told = {"pipeline": self.pipeline, "seed": self.seed, "prompts_sha256": self.prompts_sha256}
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
        except (LookupError, RecursionError, TypeError, ValueError):
            right = False
        if not right:
            raise DataError(f"'{path}' is no file of probes: make one with `aiao probe PIPELINE -o {path}`.")
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
) -> Probes:
    """Run a pipeline and keep what it gives its denoiser.

    Args:
        pipeline: a diffusers pipeline with a U-Net or a transformer: the suspect's own, or another of its family.
        prompts (*optional*): a list, or a .txt or .json file of them; an input each. None for a pipeline that takes none.
        seed (`int`, defaults to 0): of the pipeline's noise.
        count (`int`, defaults to 8): inputs of a pipeline that takes no prompts.
        steps (`int`, defaults to 12): of sampling. The pipeline runs unguided, so that a row of its denoiser is a picture.
        name (`str`, *optional*): what the report calls the pipeline; default: its class.
    Raises:
        DataError: prompts missing, unreadable or not taken; a pipeline whose denoiser or scheduler cannot be followed.
    """
    denoiser, scheduler = denoiser_of(pipeline), getattr(pipeline, "scheduler", None)
    if denoiser is None or denoiser is pipeline or scheduler is None:
        raise DataError(f"probes are captured from a pipeline, got {type(pipeline).__name__}: pass one of diffusers'.")
    label = name or type(pipeline).__name__
    config = {"_class_name": type(scheduler).__name__, **scheduler.config}
    asked = _prompts_for(pipeline, prompts, label)
    digest = None if asked is None else hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    if seed < 0 or count < 1 or steps < 1:
        raise DataError(f"seed must be at least 0, count and steps at least 1, got {seed}, {count} and {steps}.")
    # Refuses other schedules before the pipeline runs.
    make = partial(Probes, scheduler=config, pipeline=label, seed=seed, prompts_sha256=digest)
    make(LatentData(torch.zeros(1, 1, 1, 1), {}))
    generator, parts = torch.Generator().manual_seed(seed), []
    total = count if asked is None else len(asked)
    for start in range(0, total, BATCH):
        rows = min(BATCH, total - start)
        chosen = None if asked is None else asked[start : start + rows]
        parts.append(
            _run(pipeline, unwrap(denoiser), chosen, rows, {"generator": generator, "num_inference_steps": steps})
        )
    names = parts[0].conditioning
    try:
        joined = {n: torch.cat([part.conditioning[n] for part in parts]) for n in names}
        return make(LatentData(torch.cat([part.latents for part in parts]), joined))
    except (LookupError, RuntimeError) as error:
        raise DataError(
            f"{label} conditions its denoiser by tensors of other shapes from prompt to prompt."
        ) from error


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


def _run(pipeline: Any, denoiser: Any, prompts: list[str] | None, rows: int, given: dict[str, Any]) -> LatentData:
    """One batch: the last latents that the scheduler made, and the conditioning of the denoiser's first call."""
    known = inspect.signature(type(pipeline).__call__).parameters
    options = {"guidance_scale": 1.0, "output_type": "latent" if prompts else "np", **given}
    options |= {"batch_size": rows} if prompts is None else {"prompt": prompts}
    with _listen(pipeline, denoiser) as heard:
        try:
            pipeline(**{name: value for name, value in options.items() if name in known})
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DataError(f"{type(pipeline).__name__} does not run: {short(repr(error), 300)}") from error
    if "latents" not in heard or "call" not in heard:
        raise DataError(f"{type(pipeline).__name__} did not run its own denoiser and scheduler: nothing was captured.")
    conditions = dict(_flatten(heard["call"]))
    wrong = {
        name: len(value) for name, value in {"latents": heard["latents"], **conditions}.items() if len(value) != rows
    }
    if wrong:
        raise DataError(
            f"{type(pipeline).__name__} runs its denoiser on {wrong} rows for {rows} pictures: probes need a row a picture."
        )
    return LatentData(heard["latents"], conditions)


@contextmanager
def _listen(pipeline: Any, denoiser: Any) -> Iterator[dict[str, Any]]:
    """What the denoiser is first called with, and what the scheduler's last step makes, for the length of the block."""
    heard: dict[str, Any] = {}
    signature, scheduler = inspect.signature(denoiser.forward), pipeline.scheduler

    def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        heard.setdefault("call", signature.bind(*args, **kwargs).arguments)

    def follow(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        last = result[0] if isinstance(result, tuple) else result.prev_sample
        heard["latents"] = last.detach().float().cpu()
        return result

    with ExitStack() as stack:
        stack.callback(denoiser.register_forward_pre_hook(enter, with_kwargs=True).remove)
        bars = dict(getattr(pipeline, "_progress_bar_config", {}))
        stack.callback(setattr, pipeline, "_progress_bar_config", bars)
        pipeline.set_progress_bar_config(disable=True)
        # On the instance, for the length of the block alone; pipelines look at the signature of `step`, which partial keeps.
        stack.callback(scheduler.__dict__.pop, "step", None)
        scheduler.step = partial(follow, scheduler.step)
        scheduler.step.__signature__ = inspect.signature(scheduler.step.args[0])
        yield heard


def _flatten(call: Mapping[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """The conditioning of a call by dotted names, float32 on the CPU."""
    for name, value in call.items():
        for inner, tensor in value.items() if isinstance(value, Mapping) else ((None, value),):
            if isinstance(tensor, torch.Tensor) and tensor.ndim and name not in _NOT_CONDITIONS:
                tensor = tensor.detach().cpu()
                whole = tensor.float() if tensor.is_floating_point() else tensor
                yield (name if inner is None else f"{name}.{inner}"), whole
