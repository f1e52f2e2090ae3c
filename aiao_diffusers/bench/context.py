"""What an attack or a baseline has at hand: the unmarked pipeline, the owner's and the attacker's data, a seed."""

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ..denoiser.encode import from_images, image_rows, prepare
from ..denoiser.inputs import LatentData
from ..denoiser.setup import SLOTS, denoiser_of
from ..errors import ConfigError, DataError, ResultsError
from ..files.atomic import write_whole


ASSETS = Path("examples/emoji_diffusion")
"""Where measurements look for the shipped models, in a clone of the repository."""


@dataclass(frozen=True)
class AttackContext:
    """One model with its data.

    Args:
        pipe: the unmarked pipeline. Nothing in a context is changed: attacks get a copy of a denoiser.
        owner (`LatentData`): what the owner embeds with and what quality is measured on.
        data (`LatentData`): what the attacker trains on.
        seed (`int`): of everything random in an attack.
        folder (`Path`): for files that cells share, such as the other fine-tune of a merge.
        places (`list[Path]`): where files named by a suite are looked for.
    """

    pipe: Any
    owner: LatentData
    data: LatentData
    seed: int
    folder: Path
    places: tuple[Path, ...] = field(default=())

    @property
    def base(self) -> nn.Module:
        """The unmarked denoiser."""
        return base_of(self.pipe)

    @property
    def scheduler(self) -> Any:
        """The noise schedule."""
        return self.pipe.scheduler

    @property
    def generator(self) -> torch.Generator:
        """A fresh generator on the CPU, from the seed."""
        return torch.Generator().manual_seed(self.seed)

    def copy_of_base(self) -> nn.Module:
        """A denoiser that may be changed."""
        return copy.deepcopy(self.base)

    def cached(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A denoiser that several cells need, made once and kept in `folder`; two processes may both make it."""
        file = self.folder / f"{name}.safetensors"
        if file.is_file():
            module = self.copy_of_base()
            module.load_state_dict(load_file(file))
            return module
        module = make()
        write_weights(module, file)
        return module

    @contextmanager
    def running(self, denoiser: nn.Module) -> Iterator[Any]:
        """The pipeline with another denoiser in it, to generate with."""
        slot = next(name for name in SLOTS if getattr(self.pipe, name, None) is self.base)
        own = self.base
        self.pipe.register_modules(**{slot: denoiser})
        try:
            yield self.pipe
        finally:
            self.pipe.register_modules(**{slot: own})

    @property
    def prompted(self) -> bool:
        """Whether the model draws from prompts."""
        return hasattr(self.pipe, "encode_prompt")

    def draw(
        self,
        denoiser: nn.Module,
        prompts: Sequence[str],
        *,
        seeds: Sequence[int],
        steps: int,
        guidance: float = 1.0,
        decoded: bool = True,
    ) -> torch.Tensor:
        """A picture of each prompt and seed by the pipeline with `denoiser` in it, `(N, 3, H, W)` in [0, 1] on the CPU; prompts
        are ignored by a model without. Not `decoded`: its latents, where the pipeline gives them."""
        what: dict[str, Any] = {"batch_size": len(prompts)}
        if self.prompted:
            what = {"prompt": list(prompts), "guidance_scale": guidance}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        with self.running(denoiser) as pipe:
            kind = "np" if decoded else "latent"
            images = pipe(**what, generator=generators, num_inference_steps=steps, output_type=kind).images
        if not decoded:
            return images.cpu()
        return torch.from_numpy(images).float().permute(0, 3, 1, 2)

    def find(self, name: str) -> Path:
        """A file or folder that the suite names: as it stands, else in one of `places`."""
        return find(name, self.places)


def base_of(pipe: Any) -> nn.Module:
    """A pipeline's denoiser.

    Raises:
        ConfigError: it has none.
    """
    module = denoiser_of(pipe)
    if module is None:
        raise ConfigError(f"{type(pipe).__name__} has no denoiser: name a diffusion model.")
    return module


def write_weights(module: nn.Module, file: Path) -> None:
    """A denoiser's weights as safetensors, under a temporary name first.

    Raises:
        ResultsError: they could not be written, on a full disk for instance; nothing is left then.
    """
    try:
        with write_whole(file, ending=str(os.getpid())) as partial:  # workers may write the same file
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}, partial
            )
    except (OSError, SafetensorError) as error:
        raise ResultsError(f"'{file}' cannot be written ({error}): make room and run again, it goes on.") from error


def find(name: str, places: tuple[Path, ...]) -> Path:
    """`name` as it stands if it exists, else the first of `places` that has it.

    Raises:
        DataError: it is nowhere.
    """
    for path in (Path(name), *(place / name for place in places)):
        if path.exists():
            return path
    raise DataError(f"'{name}' is neither here nor in {[str(place) for place in places]}: check the suite's paths.")


def source_of(name: str, places: tuple[Path, ...]) -> str:
    """What `from_pretrained` takes: a folder that `find` finds, else `name` where it may be a Hub repository.

    Raises:
        DataError: neither.
    """
    try:
        return str(find(name, places))
    except DataError:
        if name.count("/") != 1 or name.startswith((".", "/")):
            raise
        return name


def open_pipe(name: str, places: tuple[Path, ...]) -> Any:
    """A diffusers pipeline from a folder or a Hub repository, on the device that accelerate chose.

    Raises:
        DataError: diffusers cannot load it.
    """
    source = source_of(name, places)
    try:
        pipe = DiffusionPipeline.from_pretrained(source, use_safetensors=True).to(Accelerator().device)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"'{name}' is no pipeline folder or repository that diffusers loads: {error}") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def open_data(pipe: Any, spec: str | dict[str, Any], places: tuple[Path, ...]) -> LatentData:
    """Latents from what a suite names.

    Args:
        spec: a folder of images or a file of cached latents; or `{"folder": ..., "where": {column: [values]}}`, the
            pictures whose metadata has one of these values (the emoji's categories, for instance).
    Raises:
        DataError: missing, unreadable, or nothing chosen.
    """
    if isinstance(spec, str):
        return prepare(pipe, find(spec, places))
    rows = image_rows(find(spec["folder"], places))
    for column, values in spec.get("where", {}).items():
        if column not in rows.column_names:
            raise DataError(f"'{spec['folder']}' has no column '{column}', it has {rows.column_names}.")
        rows = rows.filter(lambda row, column=column, values=values: row[column] in values)
    if not len(rows):
        raise DataError(f"no picture of '{spec['folder']}' has {spec['where']}.")
    captions = list(rows["text"]) if "text" in rows.column_names else [""] * len(rows)
    return from_images(pipe, list(rows["image"]), captions)
