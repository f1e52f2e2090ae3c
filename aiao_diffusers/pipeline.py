"""Stable Diffusion with a watermark: a thin face on `embed`, `verify` and the record."""

import os
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import CommitInfo, snapshot_download

from .deprecation import renamed_arguments
from .embedding.embed import EmbedConfig, EmbedReport, embed
from .errors import ConfigError, OutputExistsError, SuspectError
from .files.atomic import write_folder
from .mark.key import WatermarkKey
from .mark.record import FOLDER, WatermarkRecord, has_record
from .publishing.push import push
from .verification.report import VerificationReport
from .verification.suspect import find_record
from .verification.verify import verify


_DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "revision", "token")
_SAME_PARTS = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")


class WatermarkedStableDiffusionPipeline(StableDiffusionPipeline):
    """`StableDiffusionPipeline` that knows its watermark record; generation is the parent's, unchanged.

    Attributes:
        record (`WatermarkRecord`, *optional*): set by `embed` or by loading a marked folder.
    """

    record: WatermarkRecord | None = None

    @classmethod
    def from_pretrained(cls, source: Any, **kwargs: Any) -> "WatermarkedStableDiffusionPipeline":
        """As the parent's; a record in the folder or repository comes along.

        Raises:
            ConfigError: it holds another pipeline, of which parts would be left out.
        """
        options = {name: kwargs[name] for name in _DOWNLOAD if name in kwargs}
        class_name = cls.load_config(source, **options).get("_class_name")
        if class_name not in (*_SAME_PARTS, cls.__name__):
            raise ConfigError(
                f"'{source}' is a {class_name}: load it by its own class and mark it with `embed(pipe, key)`."
            )
        pipe = super().from_pretrained(source, **kwargs)
        pipe.record = _find_record(source, options)
        return pipe

    def embed(
        self,
        key: WatermarkKey,
        data: Any = None,
        config: EmbedConfig | None = None,
        callback: Any = None,
        **kwargs: Any,
    ) -> EmbedReport:
        """Mark the denoiser in place; see `aiao_diffusers.embed`."""
        return embed(self, key, data, config, callback, **kwargs)

    def verify(self, key: WatermarkKey, **kwargs: Any) -> VerificationReport:
        """Read `key` out of this pipeline; see `aiao_diffusers.verify`."""
        return verify(self, key, **kwargs)

    @renamed_arguments(clean_base="clean_twin")
    def push_to_hub(self, repo_id: str, key: WatermarkKey | None = None, **kwargs: Any) -> CommitInfo:
        """Publish with record and card; a README's own text is kept. See `aiao_diffusers.push`."""
        return push(self, repo_id, key, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """A folder that every stock class loads: it names `StableDiffusionPipeline`, the record lies in `aiao/`.

        Raises:
            ConfigError: `push_to_hub=True`, with which diffusers would replace the README and check nothing.
        """
        if kwargs.pop("push_to_hub", False):
            raise ConfigError("save_pretrained(push_to_hub=True) checks nothing: call push_to_hub(repo_id, key=key).")
        # Not `from_pipe`, which casts this very pipeline to float32.
        plain = StableDiffusionPipeline(
            **self.components, requires_safety_checker=self.config["requires_safety_checker"]
        )
        plain.save_pretrained(save_directory, **kwargs)
        if self.record is not None:
            self.record.save(Path(save_directory))


def open_pipeline(source: str, *, trusted: bool = True) -> Any:
    """A pipeline folder or repository, by whatever class of diffusers it names; its record, if any, is `pipe.record`.

    Args:
        trusted (`bool`, defaults to True): if False, of a stranger: weights are taken from safetensors alone.
    Raises:
        SuspectError: diffusers cannot load it.
    """
    try:
        pipe = DiffusionPipeline.from_pretrained(source, **({} if trusted else {"use_safetensors": True}))
    except (OSError, ValueError, AttributeError) as error:
        raise SuspectError(f"'{source}' is no pipeline folder or repository that diffusers loads: {error}") from error
    pipe.record = _find_record(source, {})
    return pipe


def _find_record(source: Any, options: dict[str, Any]) -> WatermarkRecord | None:
    if not os.path.isdir(source):
        source = snapshot_download(source, allow_patterns=f"{FOLDER}/*", **options)
    return find_record(source)


def save_new(pipe: Any, folder: str | Path, **kwargs: Any) -> Path:
    """Save a pipeline and its record to a folder that does not exist yet, whole or not at all.

    Raises:
        OutputExistsError: something is there.
    """
    target = Path(folder)
    if target.exists():
        raise OutputExistsError(f"output '{target}' exists: choose another folder or remove it.")
    with write_folder(target) as partial:
        pipe.save_pretrained(partial, **kwargs)
        if getattr(pipe, "record", None) is not None and not has_record(partial):
            pipe.record.save(partial)
        partial.chmod(0o755)
    return target
