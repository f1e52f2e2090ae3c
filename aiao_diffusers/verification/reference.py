"""Clean activations of the owner's original, and the clean twin itself, as a verifier offers them."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..denoiser.call import evaluate
from ..denoiser.hashes import tensor_sha256, weights_sha256
from ..denoiser.inputs import CALL, SHARED, LatentData
from ..denoiser.schedule import noise_schedule
from ..denoiser.setup import eval_mode, for_reading, placement
from ..denoiser.sites import attention_modules, first_tensor, trace_on, unwrap
from ..denoiser.trigger import channel_axis
from ..errors import DataError, NotTestableError, RecordError
from ..files.atomic import write_whole
from ..files.safetensors_header import load_tensors
from ..files.text import short
from ..mark.record import WatermarkRecord
from ..mark.selection import IN_SPAN, OUT_SPAN, span
from .evidence import untestable_on_failure
from .suspect import open_suspect


BATCH = 8  # inputs a forward


@dataclass(frozen=True)
class Reference:
    """Clean activations on fixed inputs, of every site that some key may select.

    Args:
        inputs (`LatentData`): noised latents with conditioning, `(N, ...)`; timesteps: the scheduler's own times, `(N,)`.
        leaving: what processors returned, at the candidates for in-sites; `(N, T, C)` each, T tokens taken of an input.
        entering: what entered processors, at the candidates for out-sites; `(N, T, C)`.
    Raises:
        RecordError: a tensor of another shape, or not finite.
    """

    inputs: LatentData
    timesteps: torch.Tensor
    leaving: Mapping[str, torch.Tensor]
    entering: Mapping[str, torch.Tensor]

    def __post_init__(self) -> None:
        count = len(self.inputs)
        _require_whole(self.timesteps.shape == (count,) and bool(torch.isfinite(self.timesteps).all()), "timesteps")
        for name, value in (*self.leaving.items(), *self.entering.items()):
            right = value.ndim == 3 and len(value) == count and 0 not in value.shape and value.is_floating_point()
            _require_whole(right and bool(torch.isfinite(value).all()), f"activations of {short(name)}")

    def tensors(self) -> dict[str, torch.Tensor]:
        """As stored: float16, names with prefixes."""
        result = self.inputs.tensors()
        result |= {f"leaving.{n}": v for n, v in self.leaving.items()}
        result |= {f"entering.{n}": v for n, v in self.entering.items()}
        for name, value in result.items():
            rounded = value.is_floating_point() and not name.startswith(SHARED)
            result[name] = (value.half() if rounded else value).contiguous()
        for text in (self.inputs.metadata() or {}).values():
            # As a tensor, for the hash covers tensors alone.
            result[CALL] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        return {**result, "timesteps": self.timesteps}

    @property
    def sha256(self) -> str:
        """`tensor_sha256` of the stored tensors; a record names it."""
        return tensor_sha256(self.tensors())

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, under a temporary name first. Keep it private, as the key."""
        path = Path(path)
        with write_whole(path) as partial:
            save_file(self.tensors(), str(partial))
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Reference":
        """Read what `save` wrote.

        Raises:
            RecordError: no reference file. UnsafeFileError: no safetensors file.
        """
        tensors = load_tensors(path)
        parts: dict[str, dict[str, torch.Tensor]] = {"leaving": {}, "entering": {}}
        given: dict[str, torch.Tensor] = {}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            value = value.float() if value.is_floating_point() else value
            if kind in parts:
                parts[kind][rest] = value
            elif name not in ("timesteps", CALL):
                given[name] = value
        if not {"latents", "timesteps"} <= set(tensors) or not parts["leaving"] or not parts["entering"]:
            raise RecordError(
                f"'{path}' is no alignment reference: pass the file that embedding wrote, or the clean twin."
            )
        try:
            text = bytes(tensors[CALL].tolist()).decode() if CALL in tensors else None
            inputs = LatentData.from_tensors(given, None if text is None else {CALL: text})
        except (DataError, UnicodeDecodeError, ValueError) as error:
            raise RecordError(f"the inputs in '{path}' are no reference's: {error}") from error
        return cls(inputs, tensors["timesteps"], parts["leaving"], parts["entering"])


def _require_whole(right: bool, what: str) -> None:
    if not right:
        raise RecordError(
            f"the alignment reference's {what} have another shape or kind than its inputs ask for: it was altered or cut."
        )


def observe(
    denoiser: nn.Module,
    data: LatentData,
    schedule: Mapping[str, Any],
    *,
    inputs: int = 32,
    per_channel: int = 4,
    seed: int = 0,
) -> Reference:
    """The reference of a clean denoiser: call it before embedding.

    Args:
        data: clean latents with conditioning; rows are taken evenly. schedule: the noise schedule's config.
        inputs (`int`, defaults to 32): forwards, each at its own timestep and noise.
        per_channel (`int`, defaults to 4): activations kept per channel of a site, where its resolution offers them.
    """
    model: Any = unwrap(denoiser)
    random = torch.Generator().manual_seed(seed)
    rows = data.take(torch.linspace(0, len(data) - 1, inputs).round().long())
    noising = noise_schedule(dict(schedule))
    steps = noising.steps
    # As in a trial, the ends of the schedule are left out.
    times = torch.linspace(0.1 * steps, 0.9 * steps - 1, inputs).long()[torch.randperm(inputs, generator=random)]
    noise = torch.randn(rows.latents.shape, generator=random)
    # Through float16 at once: a suspect is fed what the file holds.
    noised = LatentData(
        noising.add_noise(rows.latents, noise, times).half().float(),
        {n: v.half().float() if v.is_floating_point() else v for n, v in rows.conditioning.items()},
        rows.call,
    )
    sites = trace_on(model, data)

    def count(width: int) -> int:
        return -(-per_channel * width // inputs)

    leaving = {site.name: count(site.width_out) for site in span(sites, IN_SPAN)}
    entering = {site.name: count(site.width_in) for site in span(sites, OUT_SPAN)}
    levels = noising.level(times)
    return Reference(noised, levels, *capture_activations(model, noised, levels, leaving, entering))


def reference_for(record: WatermarkRecord, source: Any) -> tuple[Reference, tuple[str, ...]]:
    """The reference that a verifier gives, checked against the record, and warnings.

    Args:
        source: a `Reference`, its file, or the clean twin: a denoiser, a pipeline, a folder or a Hub repository id.
    Raises:
        RecordError: the record names another reference or twin, or the twin cannot be run. Errors of `open_suspect`.
    """
    if isinstance(source, str | Path) and Path(source).is_file():
        source = Reference.load(source)
    if isinstance(source, Reference):
        stated, what, reference = record.reference_sha256, "reference", source
        _require_named(stated, reference.sha256, what)
    else:
        stated, what = record.teacher_sha256, "clean twin"
        with open_clean_twin(record, source) as twin:
            try:
                with untestable_on_failure("the clean twin"):
                    reference = observe(twin, record.bank, record.scheduler)
            except NotTestableError as error:  # of the record, not of the suspect
                raise RecordError(f"no reference can be made with this record: {error}") from error
    if stated is None:
        return reference, (
            f"the record names no {what}: an aligned p-value is exact only if it was made without the key.",
        )
    return reference, ()


@contextmanager
def open_clean_twin(record: WatermarkRecord, source: Any) -> Iterator[nn.Module]:
    """The model that embedding started from, open within the block and checked against the record, if that names one.

    Args:
        source: a denoiser, a pipeline, a folder or a Hub repository id.
    Raises:
        RecordError: the record names another twin, or the twin cannot be run. Errors of `open_suspect`.
    """
    with ExitStack() as stack:
        try:
            twin = unwrap(stack.enter_context(open_suspect(source)).denoiser)
            _require_named(record.teacher_sha256, weights_sha256(twin), "clean twin")
        except NotTestableError as error:  # of the twin, not of the suspect
            raise RecordError(f"the clean twin given cannot be run: {error}") from error
        yield for_reading(twin)[0]


def _require_named(stated: str | None, found: str, what: str) -> None:
    if stated is not None and stated != found:
        raise RecordError(
            f"the record names another {what} than the one given: pass the one that embedding started from."
        )


@torch.no_grad()
def capture_activations(
    denoiser: nn.Module,
    inputs: LatentData,
    timesteps: torch.Tensor,
    leaving: Mapping[str, int],
    entering: Mapping[str, int],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Activations `(N, T, C)`, float32, CPU; the mappings say how many tokens to take of an input at each site."""
    modules, kept = attention_modules(denoiser), ({}, {})  # type: tuple[Any, tuple[dict[str, Any], dict[str, Any]]]

    def keep(target: dict[str, Any], name: str, hidden: torch.Tensor, count: int, start: int) -> None:
        tokens = hidden.flatten(2).transpose(1, 2) if channel_axis(hidden) == 1 else hidden
        # Evenly spaced, shifted from input to input, so that all places are seen.
        first = start + torch.arange(len(tokens))[:, None]
        count = min(count, tokens.shape[1])
        index = (first * 7 + torch.arange(count)[None] * tokens.shape[1] // count) % tokens.shape[1]
        chosen = tokens.float().cpu().gather(1, index[..., None].expand(-1, -1, tokens.shape[2]))
        target.setdefault(name, []).append(chosen.clamp(-65504, 65504))

    device, dtype = placement(denoiser)
    with eval_mode(denoiser):
        for start in range(0, len(inputs), BATCH):
            rows = torch.arange(start, min(start + BATCH, len(inputs)))
            batch, times = inputs.take(rows), timesteps[rows].to(device)
            with ExitStack() as stack:
                for name, count in leaving.items():

                    def left(
                        m: Any, a: Any, out: Any, name: str = name, count: int = count, start: int = start
                    ) -> None:
                        keep(kept[0], name, first_tensor(out), count, start)

                    stack.callback(modules[name].register_forward_hook(left).remove)
                for name, count in entering.items():

                    def entered(
                        m: Any, a: Any, k: Any, name: str = name, count: int = count, start: int = start
                    ) -> None:
                        keep(kept[1], name, a[0] if a else k["hidden_states"], count, start)

                    stack.callback(modules[name].register_forward_pre_hook(entered, with_kwargs=True).remove)
                evaluate(denoiser, batch.latents.to(device, dtype), times, batch.keywords(device, dtype))
    return tuple({name: torch.cat(parts) for name, parts in side.items()} for side in kept)  # type: ignore[return-value]
