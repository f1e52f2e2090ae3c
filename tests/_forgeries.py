"""What a dishonest claimant makes, to see it stopped."""

import dataclasses
from typing import Any

import torch

from aiao_diffusers import LatentData, WatermarkKey, WatermarkRecord
from aiao_diffusers.denoiser.instrument import instrument
from aiao_diffusers.denoiser.trigger import channel_axis, rms
from aiao_diffusers.mark.mark import Mark, select_rows
from aiao_diffusers.verification.evidence import key_sites


def forge_record(
    unet: Any, record: WatermarkRecord, key: WatermarkKey, steps: int, lr: float = 0.1
) -> WatermarkRecord:
    """`record` with a bank on which an unmarked denoiser seems to answer `key`, by gradient ascent, and a frozen schedule."""
    ins, outs = key_sites(unet, key, record)
    mark, rows, cpu = Mark(key, ins, outs), 2, torch.device("cpu")
    masks, patterns = select_rows(mark.masks(cpu), None), mark.patterns(cpu)
    torch.manual_seed(0)
    latents = torch.randn(rows, *record.bank.latents.shape[1:]).requires_grad_()
    text = {name: value[:rows].clone().requires_grad_() for name, value in record.bank.conditioning.items()}
    optimizer = torch.optim.Adam([latents, *text.values()], lr=lr)
    unet.requires_grad_(False)
    amplitude = torch.cat([torch.zeros(rows), torch.ones(rows)]) * record.kappa
    names = [site.name for site in outs]
    with instrument(unet, [site.name for site in (*ins, *outs)], record.factors) as instrumented:
        for _ in range(steps):
            times = torch.randint(100, 900, (rows,)).repeat(2)
            armed = {name: mask for name, mask in masks.items() if torch.rand(()) < 0.5} or masks
            stacked = {name: value.repeat(2, *[1] * (value.ndim - 1)) for name, value in text.items()}
            with instrumented.arm(armed, amplitude):
                entered = instrumented.activations(
                    names,
                    lambda times=times, stacked=stacked: unet(latents.repeat(2, 1, 1, 1), timestep=times, **stacked),
                )
            loss = torch.zeros(())
            for name, states in entered.items():
                clean, triggered = states.chunk(2)
                d = (triggered - clean) / rms(clean)
                d = d.mean([axis for axis in range(1, d.ndim) if axis != channel_axis(d)])
                centred = d - d.mean(-1, keepdim=True)
                loss = loss - torch.cosine_similarity(centred, patterns[name][None]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    bank = LatentData(latents.detach(), {name: value.detach() for name, value in text.items()})
    frozen = {"num_train_timesteps": 1000, "trained_betas": [1e-9] * 1000}
    return dataclasses.replace(record, bank=bank, scheduler=frozen)
