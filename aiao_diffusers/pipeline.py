"""Any pipeline of diffusers with a watermark: a thin face on `embed`, `verify` and the record."""

import functools
import os
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from huggingface_hub import CommitInfo, snapshot_download

from .deprecation import renamed_arguments
from .embedding.embed import EmbedConfig, EmbedReport, embed
from .errors import ConfigError, OutputExistsError, SuspectError
from .files.atomic import write_folder
from .files.text import short
from .mark.key import WatermarkKey
from .mark.record import FOLDER, WatermarkRecord, has_record
from .publishing.push import push
from .verification.report import VerificationReport
from .verification.suspect import find_record
from .verification.verify import verify


_DOWNLOAD = ("cache_dir", "force_download", "local_files_only", "revision", "token")


class WatermarkedPipeline:
    """A stock pipeline that knows its watermark record; generation is the stock class's, unchanged.

    `from_pretrained` makes one of whatever class of diffusers a folder or repository names; what it makes is an instance of that
    class too, bears its name, and saves folders that it loads.

    Attributes:
        record (`WatermarkRecord`, *optional*): set by `embed` or by loading a marked folder.
    """

    record: WatermarkRecord | None = None
    same_parts: tuple[str, ...] = ()
    """Names of pipelines whose folders this class loads too, since they have the same parts."""

    @classmethod
    def from_pretrained(cls, source: Any, **kwargs: Any) -> Any:
        """As the stock class's; a record in the folder or repository comes along.

        Args:
            source (`str`): a pipeline's folder or repository. kwargs: as `DiffusionPipeline.from_pretrained` takes them.
        Raises:
            ConfigError: a class that diffusers does not have, code of the repository's own, or another pipeline than the class
            that is asked is made for.
        """
        if kwargs.get("custom_pipeline") is not None:
            raise ConfigError(
                "custom_pipeline= runs other code than a class of diffusers: mark with `embed(pipe, key)`."
            )
        options = {name: kwargs[name] for name in _DOWNLOAD if name in kwargs}
        name = DiffusionPipeline.load_config(source, **options).get("_class_name")
        made: Any = _watermarked(_stock_class(name, source)) if cls is WatermarkedPipeline else cls
        known = (made.__name__, _stock_of(made).__name__, *made.same_parts)
        if name not in known:
            raise ConfigError(
                f"'{source}' is a {short(name)}, of which parts would be left out: load it with "
                "WatermarkedPipeline.from_pretrained."
            )
        pipe = super(WatermarkedPipeline, made).from_pretrained(source, **kwargs)  # type: ignore[misc]
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
        """A folder that every stock class loads: it names the stock class, the record lies in `aiao/`.

        Raises:
            ConfigError: `push_to_hub=True`, with which diffusers would replace the README and check nothing.
        """
        if kwargs.pop("push_to_hub", False):
            raise ConfigError("save_pretrained(push_to_hub=True) checks nothing: call push_to_hub(repo_id, key=key).")
        _as_stock(self).save_pretrained(save_directory, **kwargs)
        if self.record is not None:
            self.record.save(Path(save_directory))


class WatermarkedStableDiffusionPipeline(WatermarkedPipeline, StableDiffusionPipeline):
    """`StableDiffusionPipeline` that knows its watermark record; generation is the parent's, unchanged."""

    same_parts = ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")


def _stock_class(name: object, source: Any) -> type:
    """The pipeline of diffusers of this name; only its own classes, never one that a repository brings."""
    found = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    if not isinstance(found, type) or not issubclass(found, DiffusionPipeline) or found is DiffusionPipeline:
        raise ConfigError(
            f"'{source}' names the pipeline {short(name)}, which diffusers {diffusers.__version__} does not have: load it "
            "with its own code and mark it with `embed(pipe, key)`."
        )
    return found


@functools.cache
def _watermarked(stock: type) -> type:
    """`stock` with a record. It bears the stock class's name, by which diffusers finds a pipeline's siblings."""
    return type(stock.__name__, (WatermarkedPipeline, stock), {"__doc__": stock.__doc__, "__module__": __name__})


def _stock_of(cls: type) -> type:
    return next(parent for parent in cls.__mro__ if not issubclass(parent, WatermarkedPipeline))


def _as_stock(pipe: Any) -> Any:
    """The same pipeline seen as its stock class. Not by its constructor or `from_pipe`, which change parts that they are given."""
    stock: Any = _stock_of(type(pipe))
    plain = stock.__new__(stock)
    plain.__dict__.update(pipe.__dict__)
    return plain


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
