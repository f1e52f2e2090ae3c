"""The attention processor that arms a trigger or reads a response at one site, around the one installed there."""

import inspect
from typing import Any

import torch

from .sites import first_tensor
from .trigger import apply_trigger


class AIAOAttnProcessor:
    """Wraps a site's installed processor by composition; unarmed and not reading, it only passes the call on.

    It is plain Python, no `nn.Module`: a module here would leak parameters into the denoiser's state dict.

    Args:
        inner: the processor that diffusers or the user installed; it does all the attention.
    Attributes:
        mask (`torch.Tensor`, *optional*): trigger mask `(C,)` or, one a sample, `(B, C)`; None is unarmed.
        amplitude (`torch.Tensor` or `float`): per sample `(B,)` or one for all, in units of the output's rms.
        reading (`bool`): keep the hidden states that enter, in `entered`, `(B, T, C)` or `(B, C, H, W)`.
        calls (`int`): times it ran while armed or reading, since the last `disarm`.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.mask: torch.Tensor | None = None
        self.amplitude: torch.Tensor | float = 0.0
        self.reading = False
        self.entered: torch.Tensor | None = None
        self.calls = 0
        # `Attention.forward` drops every keyword that is missing in this signature, so show the inner one's.
        self._call = _Call(self)
        self._call.__signature__ = inspect.signature(inner.__call__)

    def __getattribute__(self, name: str) -> Any:
        if name == "__call__":
            return object.__getattribute__(self, "_call")
        return object.__getattribute__(self, name)

    def __getattr__(self, name: str) -> Any:
        # Reached only for names we do not have: `_attention_backend`, `scale` of IP-Adapter and the like.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.reading or self.mask is not None:
            self.calls += 1
        if self.reading:
            self.entered = hidden_states
        output = self.inner(attn, hidden_states, *args, **kwargs)
        if self.mask is None:
            return output
        triggered = apply_trigger(first_tensor(output), self.mask, self.amplitude)
        return (triggered, *output[1:]) if isinstance(output, tuple) else triggered

    def disarm(self) -> None:
        """Back to passing calls on; drops the mask and what was read."""
        self.mask, self.amplitude, self.reading, self.entered, self.calls = None, 0.0, False, None, 0


class _Call:
    """A callable with a signature of its own, which a bound method cannot have."""

    __signature__: inspect.Signature

    def __init__(self, processor: AIAOAttnProcessor) -> None:
        self.processor = processor

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.processor(*args, **kwargs)
