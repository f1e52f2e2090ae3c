"""Healing: a short ordinary fine-tune of a suspect, which brings a suppressed mark back.

An attacker who trains a model to ignore random triggers suppresses a mark rather than erasing it; a short ordinary
fine-tune of the result undoes part of that. It never sees the key, so a p-value read afterwards stays
exact. What it cannot do is bring a mark into a model that has none: training knows nothing of masks or patterns.
"""

import copy
from typing import Any

import torch
from torch import nn

from ..denoiser.finetune import finetune
from ..denoiser.inputs import LatentData
from ..denoiser.sites import unwrap
from ..errors import NotTestableError
from .evidence import UNFIT_ERRORS


STEPS, RATE, BATCH = 150, 1e-4, 8  # of healing


def heal_copy(
    denoiser: nn.Module, data: LatentData, scheduler: Any, *, steps: int = STEPS, seed: int = 0
) -> nn.Module:
    """A float32 copy of `denoiser`, all weights fine-tuned for a moment; the suspect itself is not touched.

    Args:
        data: clean latents with conditioning; a probe bank alone is little, the owner's own data is better.
        steps (`int`, defaults to 150): of batch 8 at learning rate 1e-4. A step costs about three forwards of its batch.
    Raises:
        NotTestableError: the suspect has weights that cannot be trained (quantised ones), or does not take `data`.
    """
    twin: nn.Module = copy.deepcopy(unwrap(denoiser))
    # Subclasses of Parameter's data (torchao, quanto) call themselves floating point, but hold integers.
    frozen = [n for n, p in twin.named_parameters() if not p.is_floating_point() or type(p.data) is not torch.Tensor]
    if frozen:
        raise NotTestableError(f"weights such as {frozen[0]!r} are quantised and cannot be trained: dequantise first.")
    if any(p.is_meta for p in twin.parameters()):
        raise NotTestableError(
            "the suspect's weights are offloaded and cannot be trained: load it without offloading."
        )
    twin.float().requires_grad_(True)
    try:
        return finetune(twin, data, scheduler, steps=steps, lr=RATE, batch_size=BATCH, seed=seed)
    except torch.OutOfMemoryError:
        raise  # it tells of this machine, not of the suspect
    except UNFIT_ERRORS as error:
        raise NotTestableError(f"the suspect does not train on the latents given for healing: {error}") from error
