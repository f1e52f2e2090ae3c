"""Wrap a denoiser's sites, run it clean and triggered, read the out-sites; then everything is put back.

with instrument(denoiser, names) as instrumented:   # AIAO processors installed, unarmed: output bit-identical
    with instrumented.arm(masks, amplitude): ...    # triggered mode
    instrumented.responses(masks, ...)              # one stacked clean+triggered forward, stopped after the last out-site
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from ..errors import ShapeError, SiteError
from .call import CallInputs, Keywords, evaluate
from .processor import AIAOAttnProcessor
from .setup import finish_offload
from .sites import Site, attention_modules, unwrap
from .trigger import channel_axis, difference


class Coordinates(Protocol):
    """The bases that a suspect's sites are written in, seen from the key's; see `verification.alignment`."""

    def mask(self, site: str, mask: torch.Tensor) -> torch.Tensor:
        """What to add at an in-site, in the suspect's basis and units: `(C,)` to `(C,)`."""

    def hidden(self, site: str, hidden_states: torch.Tensor) -> torch.Tensor:
        """What entered an out-site, in the key's basis; shape kept."""


class _Stop(Exception):
    """Ends a forward after the last wanted site; never leaves this file."""


class InstrumentedDenoiser:
    """A denoiser whose sites are wrapped; made by `instrument`.

    Attributes:
        gains: factors on every amplitude by in-site; 1 where a site has none.
    """

    def __init__(
        self, denoiser: nn.Module, processors: Mapping[str, AIAOAttnProcessor], gains: Mapping[str, float]
    ) -> None:
        self.denoiser = denoiser
        self.processors = processors
        self.gains = gains

    @contextmanager
    def arm(self, masks: Mapping[str, torch.Tensor], amplitude: torch.Tensor | float) -> Iterator[None]:
        """Triggered mode at the sites of `masks`: `(C,)` or `(B, C)` each; `amplitude` a number or `(B,)`."""
        try:
            for name, mask in masks.items():
                self.processors[name].mask = mask
                self.processors[name].amplitude = amplitude * self.gains.get(name, 1.0)
            yield
        finally:
            for name in masks:
                self.processors[name].disarm()

    @contextmanager
    def capture(self, names: Sequence[str]) -> Iterator[Callable[[], dict[str, torch.Tensor]]]:
        """Keep the hidden states that enter these sites; the yielded function returns them by site name.

        Raises (from that function):
            SiteError: a site was never reached by a forward inside the block.
        """

        def collect() -> dict[str, torch.Tensor]:
            # Armed sites too: a trigger that was never applied would read as "no mark".
            used = {*names, *(name for name, p in self.processors.items() if p.mask is not None)}
            missing = sorted(name for name in used if not self.processors[name].calls)
            if missing:
                raise SiteError(
                    f"no forward reached the sites {missing}: {self.explain_replaced() or 'blocks were replaced.'}"
                )
            return {name: self.processors[name].entered for name in names}  # type: ignore[misc]

        try:
            for name in names:
                self.processors[name].reading = True
            yield collect
        finally:
            for name in names:
                processor = self.processors[name]
                processor.reading, processor.entered, processor.calls = False, None, 0

    def explain_replaced(self) -> str:
        """What to do about processors that were exchanged since the sites were wrapped; empty when all are in place."""
        modules = attention_modules(self.denoiser)
        lost = [name for name, processor in self.processors.items() if modules[name].processor is not processor]
        if not lost:
            return ""
        return (
            f"the processors of {lost[:3]} ({len(lost)} sites) were replaced after wrapping. set_attention_slice, "
            "fuse_qkv_projections, load_ip_adapter and xformers do that: call them before, or leave the `instrument` block."
        )

    def activations(self, names: Sequence[str], forward: Callable[[], object]) -> dict[str, torch.Tensor]:
        """Hidden states entering `names` in one call of `forward`, which ends behind the last of them."""
        if self.explain_replaced():
            raise SiteError(self.explain_replaced())
        modules = attention_modules(self.denoiser)
        pending = set(names)

        def stopper(name: str) -> Callable[..., None]:
            # The processor keeps the states; this hook runs behind it, so nothing wanted is cut off.
            def hook(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
                pending.discard(name)
                if not pending:
                    raise _Stop

            return hook

        with ExitStack() as stack, self.capture(names) as collect:
            for name in names:
                stack.callback(modules[name].register_forward_hook(stopper(name)).remove)
            try:
                forward()
            except _Stop:
                finish_offload(self.denoiser)
            return collect()

    @torch.no_grad()
    def responses(
        self,
        masks: Mapping[str, torch.Tensor],
        out_sites: Sequence[Site],
        kappa: float,
        inputs: CallInputs,
        through: Coordinates | None = None,
    ) -> dict[str, torch.Tensor]:
        """One stacked forward, a clean part and a triggered part for each row of the masks; the responses to each.

        Args:
            masks (`Mapping[str, torch.Tensor]`): of every armed in-site, `(N, C)`; the n-th rows are armed together.
            out_sites (`Sequence[Site]`): where responses are read; the forward ends behind the last of them.
            kappa (`float`): trigger amplitude in units of the in-site's rms.
            inputs (`CallInputs`): of B rows.
            through (`Coordinates`, *optional*): an alignment that masks and hidden states pass through; default: the sites
                are read as they are.
        Returns:
            `dict[str, torch.Tensor]`: of every out-site the responses, `(N, C)`, float32, CPU.
        Raises:
            SiteError: a site was not reached. ShapeError: an out-site has another width. NotTestableError: as `difference`.
        """
        sample, level, conditioning = inputs
        batch, count = sample.shape[0], len(next(iter(masks.values())))
        amplitude = torch.full(((count + 1) * batch,), float(kappa))
        amplitude[:batch] = 0.0
        armed = {}
        for name, rows in masks.items():
            if through is not None:
                rows = torch.stack([through.mask(name, row) for row in rows])
            # The clean part needs a row too; its amplitude is zero.
            armed[name] = torch.cat([rows[:1], rows]).repeat_interleave(batch, 0).to(sample.device)
        stacked, times = (torch.cat([value] * (count + 1)) for value in (sample, level))
        repeated, names = repeat(conditioning, count + 1), [site.name for site in out_sites]
        with self.arm(armed, amplitude.to(sample.device)):
            entered = self.activations(names, lambda: evaluate(self.denoiser, stacked, times, repeated))
        if through is not None:
            entered = {name: through.hidden(name, states) for name, states in entered.items()}
        for site in out_sites:
            width = entered[site.name].shape[channel_axis(entered[site.name])]
            if width != site.width_in:
                raise ShapeError(f"site {site.name!r} has {width} channels, expected {site.width_in}.")
        parts = {name: states.split(batch) for name, states in entered.items()}
        return {
            name: torch.stack([difference(part, clean) for part in rest]) for name, (clean, *rest) in parts.items()
        }


def repeat(value: Any, times: int) -> Any:
    """A tensor `times` over along the first axis, or conditioning tensor by tensor; the call's shared tensors stay single."""
    if isinstance(value, Keywords):
        return value.map(lambda rows: torch.cat([rows] * times))
    if isinstance(value, Mapping):
        return {name: repeat(item, times) for name, item in value.items()}
    return torch.cat([value] * times)


def _install(module: Any, processor: Any) -> None:
    if hasattr(module, "set_processor"):
        module.set_processor(processor)
    else:  # Mochi's attention
        module.processor = processor


@contextmanager
def instrument(
    denoiser: nn.Module, names: Sequence[str], gains: Mapping[str, float] | None = None
) -> Iterator[InstrumentedDenoiser]:
    """Install `AIAOAttnProcessor` at the sites `names`; the very processors found are put back at the end.

    Args:
        denoiser (`nn.Module`): a diffusers denoiser, compiled or wrapped or not.
        names (`Sequence[str]`): sites, by their names.
        gains: factors on every amplitude by in-site, as the record publishes them (`loudness`); default: 1 everywhere.
    Raises:
        SiteError: a site is missing, is wrapped already, or did not keep the wrapper.
    """
    denoiser = unwrap(denoiser)
    modules = attention_modules(denoiser)
    missing = [name for name in names if name not in modules]
    if missing:
        raise SiteError(f"{type(denoiser).__name__} has no sites {missing}; it has {list(modules)[:4]} and so on.")
    installed = {name: modules[name].processor for name in names}
    nested = [name for name, inner in installed.items() if isinstance(inner, AIAOAttnProcessor)]
    if nested:
        raise SiteError(f"sites {nested} are wrapped already: leave the outer `instrument` block first.")
    with ExitStack() as stack:
        # `torch.compile` of a module or its blocks would trace the wrappers, once more for each sub-path.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        processors = {}
        for name, inner in installed.items():
            processors[name] = AIAOAttnProcessor(inner)
            # Through `set_processor` both ways: a processor that is a module (IP-Adapter) is unregistered as a child on
            # the way in and registered again on the way out, which setting the attribute would not do.
            stack.callback(_install, modules[name], inner)
            _install(modules[name], processors[name])
        lost = [name for name in names if modules[name].processor is not processors[name]]
        if lost:
            raise SiteError(f"sites {lost} did not keep the AIAO processor: their attention class fixes its own.")
        yield InstrumentedDenoiser(denoiser, processors, gains or {})
