"""The one training loop of the example: accelerate for devices and exact resume, a JSONL log, a progress bar."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from tqdm.auto import tqdm


def train(
    model: torch.nn.Module,
    loss_of: Callable[[torch.nn.Module, int], dict[str, torch.Tensor]],
    folder: Path,
    *,
    steps: int,
    lr: float,
    seed: int,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    warmup: int = 100,
    ema: EMAModel | None = None,
    save_every: int = 500,
    on_save: Callable[[int], None] | None = None,
) -> torch.nn.Module:
    """Minimise `loss_of(model, step)["loss"]` for `steps` optimiser steps of AdamW.

    `loss_of` draws its own batch from torch's global generator, whose state every checkpoint holds: a killed run goes on
    as if it had never stopped. `folder/state` is the checkpoint, `folder/log.jsonl` the log.
    """
    accelerator = Accelerator()
    set_seed(seed, device_specific=True)
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=lr, weight_decay=weight_decay)
    # accelerate steps a schedule once for each process.
    ticks = accelerator.num_processes
    scheduler = get_scheduler(schedule, optimizer, num_warmup_steps=warmup * ticks, num_training_steps=steps * ticks)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    folder.mkdir(parents=True, exist_ok=True)
    states = sorted(folder.glob("state-*"))
    step = 0
    if states:
        accelerator.load_state(str(states[-1]))
        step = int(states[-1].name.split("-")[1])
    bar = tqdm(total=steps, initial=step, desc=folder.name, mininterval=10, disable=not accelerator.is_main_process)
    started, totals, count = time.time(), {}, 0
    model.train()
    with open(folder / "log.jsonl", "a") as log:
        while step < steps:
            terms = loss_of(model, step)
            accelerator.backward(terms["loss"])
            accelerator.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            if ema is not None:
                ema.step(trainable)
            step += 1
            count += 1
            bar.update()
            for name, value in terms.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
            if step % 50 == 0 or step == steps:
                means = {name: round(total / count, 6) for name, total in totals.items()}
                seconds = round((time.time() - started) / count, 3)
                if accelerator.is_main_process:
                    log.write(json.dumps({"step": step, **means, "s_per_step": seconds}) + "\n")
                    log.flush()
                bar.set_postfix(means)
                started, totals, count = time.time(), {}, 0
            if step % save_every == 0 or step == steps:
                _save(accelerator, folder, step)
                if on_save is not None and accelerator.is_main_process:
                    on_save(step)
    return accelerator.unwrap_model(model)


def _save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Write the new state under a temporary name, then drop the older ones: a kill leaves one whole state."""
    partial = folder / ".state.partial"
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    partial.rename(folder / f"state-{step:07d}")
    for old in sorted(folder.glob("state-*"))[:-1]:
        for file in old.iterdir():
            file.unlink()
        old.rmdir()
