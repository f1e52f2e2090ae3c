"""One judged file or folder: what it is, its files, and their headers, read once for everybody who asks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files.safetensors_header import Header


_EFFECTS = {
    "textual_inversion": "it changes the prompt's embedding only",
    "text_encoder_only": "it changes text encoders only",
    "ip_adapter": "it adds layers to the denoiser, which are not read here, and leaves the weights that are there as they are",
    "motion_adapter": "it adds layers to the denoiser, which are not read here, and leaves the weights that are there as they are",
    "controlnet": "it is a network beside the denoiser, which adds to its activations and leaves its weights as they are",
}


def effect_of(kind: str) -> str:
    """What a file of a kind that carries no weights of a denoiser does to one, in words for a refusal."""
    return _EFFECTS.get(kind, "it holds no weights of a denoiser that are known here")


@dataclass(frozen=True)
class Bystander:
    """Weights that lie beside the judged ones and were not read.

    Args:
        path: within the folder or repository; `weight_name=` takes it. kind: `denoiser`, `lora`, `single_file` or `pickle`.
        why: who would load it.
    """

    path: str
    kind: str
    why: str


@dataclass(frozen=True)
class Artifact:
    """What a file or folder is, judged by file names and headers alone; `detect` makes it, the loaders take it.

    Args:
        kind: pipeline, denoiser, lora, textual_inversion, text_encoder_only, ip_adapter, controlnet, motion_adapter,
            single_file (original keys, or GGUF) or unknown.
        path: the file or folder that was judged; of a pipeline the folder of its denoiser.
        files: the weight files that the judgement rests on, within a repository or on this machine.
        headers: theirs, checked. Empty for GGUF, whose loader reads it, and where `config` says that only another library
            reads the numbers.
        detail: what gave it away, for the report.
        warnings: what lies there too and is not part of the judgement.
        config: the denoiser folder's config.json; None for a file, which borrows its base's.
        also_present: what lies there too and somebody would load.
    """

    kind: str
    path: Path
    files: tuple[Path, ...]
    headers: tuple[Header, ...]
    detail: str
    warnings: tuple[str, ...] = ()
    config: Mapping[str, Any] | None = None
    also_present: tuple[Bystander, ...] = ()

    @property
    def several(self) -> bool:
        """Whether these are several candidates, of which `weight_name=` must name one."""
        return len(self.files) > 1 and (self.config is None or self.kind not in ("pipeline", "denoiser"))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Tensor name -> shape, over all files."""
        return {name: info.shape for header in self.headers for name, info in header.tensors.items()}

    @property
    def file_bytes(self) -> int:
        """Size of all files together, as far as their headers were read."""
        return sum(header.file_bytes for header in self.headers)
