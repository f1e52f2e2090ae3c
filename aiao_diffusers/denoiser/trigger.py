"""The trigger function and the response measure, as pure functions of tensors.

Activations of an attention site are token sequences `(B, T, C)` or feature maps `(B, C, H, W)`, as in diffusers; the rank
tells which axis holds the channels.
"""

import torch

from ..errors import NotTestableError, ShapeError


def channel_axis(hidden_states: torch.Tensor) -> int:
    """1 for a feature map `(B, C, H, W)`, 2 for a token sequence `(B, T, C)`."""
    if hidden_states.ndim == 3:
        return 2
    if hidden_states.ndim == 4:
        return 1
    raise ShapeError(
        f"activations of a site are (B, T, C) or (B, C, H, W), got {tuple(hidden_states.shape)}: this denoiser's "
        "attention is of no supported kind."
    )


def per_channel(vector: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
    """`vector` `(C,)` shaped so that it broadcasts over `hidden_states`' channels."""
    if channel_axis(hidden_states) == 1:
        return vector.view(1, -1, 1, 1)
    return vector.view(1, 1, -1)


def rms(hidden_states: torch.Tensor) -> torch.Tensor:
    """Root mean square of each sample over tokens and channels, float32, detached, shaped to broadcast.

    Detached, for a trigger that shrinks its own amplitude would be the easiest answer to every loss.
    """
    axes = tuple(range(1, hidden_states.ndim))
    return hidden_states.detach().float().square().mean(axes, keepdim=True).sqrt()


def apply_trigger(output: torch.Tensor, mask: torch.Tensor, amplitude: torch.Tensor | float) -> torch.Tensor:
    """y + amplitude * rms(y) * m, per channel.

    Args:
        output (`torch.Tensor`): what an in-site's processor returns, `(B, T, C)` or `(B, C, H, W)`.
        mask (`torch.Tensor`): m_a, `(C,)` for all samples or `(B, C)` for one each.
        amplitude (`torch.Tensor` or `float`): kappa times the look's factor; a tensor is `(B,)`. 0 leaves a sample as it is.
    Returns:
        `torch.Tensor` of the shape and dtype of `output`.
    Source: our choice: additive, because a sign flip dies under adaptive attack.
    """
    axis, batch, width = channel_axis(output), output.shape[0], mask.shape[-1]
    if output.shape[axis] != width:
        raise ShapeError(f"a mask of {width} channels does not fit activations {tuple(output.shape)}.")
    shape = [1] * output.ndim
    shape[0], shape[axis] = (mask.shape[0] if mask.ndim == 2 else 1), width
    scale = rms(output)
    if isinstance(amplitude, torch.Tensor):
        scale = scale * amplitude.to(scale).view(batch, *[1] * (output.ndim - 1))
    else:
        scale = scale * amplitude
    return output + (scale * mask.to(scale).view(shape)).to(output.dtype)


def difference(triggered: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """The response d_b of one out-site: mean of (triggered - clean) / rms(clean).

    Args:
        triggered (`torch.Tensor`): hidden states entering the out-site with the sub-path armed.
        clean (`torch.Tensor`): the same inputs and noise, unarmed; same shape.
    Returns:
        `torch.Tensor` `(C,)`, float32, CPU; 0.1 means a tenth of the clean rms. Averaged over samples and tokens.
    Raises:
        ShapeError: the shapes differ. NotTestableError: activations not finite, or all zero.
    Source: our definition; no original model is needed to decode.
    """
    if triggered.shape != clean.shape:
        raise ShapeError(f"triggered {tuple(triggered.shape)} and clean {tuple(clean.shape)} activations must agree.")
    scale = rms(clean)
    if not torch.isfinite(triggered).all() or not torch.isfinite(clean).all():
        raise NotTestableError(
            "an out-site's activations are not finite: weights are broken, or the trigger overflows their dtype."
        )
    if not (scale > 0).all():
        raise NotTestableError("an out-site's activations are all zero: the suspect's weights are broken.")
    change = (triggered.float() - clean.float()) / scale
    axes = tuple(axis for axis in range(change.ndim) if axis != channel_axis(change))
    return change.mean(axes).cpu()
