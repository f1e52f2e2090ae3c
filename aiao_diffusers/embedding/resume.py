"""A resumable state of one embedding: safetensors and JSON, written whole under a temporary name, then renamed."""

import dataclasses
import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import TrainingError
from .config import EmbedConfig


logger = logging.getLogger(__name__)

History = list[dict[str, float]]


class TrainingState:
    """Weights, moments, schedule and every process's random state, bound to what is being trained.

    Not `Accelerator.save_state`, which pickles, and which on loading also sets the user's own random states.

    Args:
        parameters: what is trained, by name. identity: of key, base and configuration; another one never resumes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: EmbedConfig,
        parameters: dict[str, nn.Parameter],
        optimizer: Any,
        schedule: Any,
        **identity: str,
    ) -> None:
        self.accelerator, self.parameters = accelerator, parameters
        self.optimizer, self.schedule = optimizer, schedule
        self.folder = Path(config.checkpoint_dir) if config.checkpoint_dir is not None else None
        fields = dataclasses.asdict(config)
        del fields["checkpoint_dir"], fields["checkpoint_every"]
        identity["processes"] = str(accelerator.num_processes)
        self.identity = json.dumps({**identity, **fields}, sort_keys=True)

    def save(self, history: History) -> None:
        """Keep this step; only then drop the older ones.

        Raises:
            TrainingError: it cannot be written (disk full); nothing half-written is left, the last whole state is.
        """
        if self.folder is None:
            return
        partial = self.folder / ".partial"
        target = self.folder / f"step-{len(history):07d}"
        main = self.accelerator.is_main_process
        try:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            save_file(self._random_state(), partial / f"random-{self.accelerator.process_index}.safetensors")
            if main:
                save_file(self._tensors(), partial / "state.safetensors")
                (partial / "progress.json").write_text(json.dumps(self._progress(history)))
            self.accelerator.wait_for_everyone()
            if main:
                partial.rename(target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise TrainingError(
                f"cannot write the checkpoint '{target}' ({error}): free space; the last whole one is kept."
            ) from error
        if main:
            for old in self.folder.glob("step-*"):
                if old != target:
                    shutil.rmtree(old)

    def resume(self) -> History:
        """Go on where the newest whole state stopped; the history so far, empty without one.

        Raises:
            TrainingError: the state is of another key, base, configuration or number of processes, or is damaged.
        """
        states = sorted(self.folder.glob("step-*")) if self.folder is not None else []
        if not states:
            return []
        newest = states[-1]
        try:
            progress = json.loads((newest / "progress.json").read_text())
            if progress["identity"] != self.identity:
                raise TrainingError(f"'{self.folder}' is the checkpoint of another run or configuration: remove it.")
            tensors = load_file(newest / "state.safetensors")
            random = load_file(newest / f"random-{self.accelerator.process_index}.safetensors")
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            if isinstance(error, TrainingError):
                raise
            raise TrainingError(f"the checkpoint '{newest}' is damaged ({error}): remove it.") from error
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.copy_(tensors[f"weight/{name}"])
        state = self.optimizer.state_dict()
        state["state"] = {
            number: {field: tensors[f"{field}/{name}"] for field in progress["moments"]}
            for number, name in enumerate(self.parameters)
        }
        self.optimizer.load_state_dict(state)
        self.schedule.load_state_dict(progress["schedule"])
        for group, lr in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = lr
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(progress["scaler"])
        torch.set_rng_state(random["cpu"])
        if "device" in random:
            torch.get_device_module(self.accelerator.device).set_rng_state(random["device"])
        logger.info("resumed at step %d from %s", len(progress["history"]), newest)
        return list(progress["history"])

    def discard(self) -> None:
        """The run is finished: its states go, and the folder if nothing else lies in it."""
        if self.folder is None or not self.accelerator.is_main_process:
            return
        for state in (*self.folder.glob("step-*"), self.folder / ".partial"):
            shutil.rmtree(state, ignore_errors=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _tensors(self) -> dict[str, torch.Tensor]:
        moments = self.optimizer.state_dict()["state"]
        tensors = {f"weight/{name}": p.detach().contiguous() for name, p in self.parameters.items()}
        for number, name in enumerate(self.parameters):
            tensors |= {f"{field}/{name}": value.contiguous() for field, value in moments[number].items()}
        return tensors

    def _random_state(self) -> dict[str, torch.Tensor]:
        state = {"cpu": torch.get_rng_state()}
        if self.accelerator.device.type != "cpu":
            state["device"] = torch.get_device_module(self.accelerator.device).get_rng_state()
        return state

    def _progress(self, history: History) -> dict[str, Any]:
        schedule = {k: v for k, v in self.schedule.state_dict().items() if not callable(v)}
        scaler = self.accelerator.scaler
        return {
            "identity": self.identity,
            "history": history,
            "moments": list(self.optimizer.state_dict()["state"][0]),
            "schedule": schedule,
            "scaler": None if scaler is None else scaler.state_dict(),
        }
