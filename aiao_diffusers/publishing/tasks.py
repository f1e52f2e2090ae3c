"""What a pipeline makes of what, as the Hub names it, and a line of Python that runs it; a new kind of pipeline is told here."""

import inspect
import re
from collections.abc import Collection
from dataclasses import dataclass

import diffusers


_NAMES = (
    (re.compile(r"Audio|Music|Dance|AceStep"), "text-to-audio"),
    (
        re.compile(
            r"Img2Img|Inpaint|Image2Image|2Img|I2I|Upscale|SuperRes|Edit|Pix2Pix|Kontext|Redux|ImageVariation|Layered"
        ),
        "image-to-image",
    ),
    (re.compile(r"Depth(?!2)"), "depth-estimation"),
    (re.compile(r"(?:Video|V)(?:To|2)(?:Video|V)"), "video-to-video"),
    (re.compile(r"(?:Image|I)(?:To|2)(?:Video|V)|StableVideoDiffusion|I2VGen|VideoToWorld"), "image-to-video"),
)
"""Parts of the names of diffusers' pipelines, in its lists of them (`diffusers.pipelines.auto_pipeline`), which take long to import."""
_FRAMES = frozenset({"num_frames", "video_length", "frames", "segment_frame_length"})
_GIVEN = frozenset(
    {"prompt", "prompt_embeds", "image_embeds", "image", "images", "original_image", "class_labels", "video"}
)
_NEEDS_MORE = re.compile(
    r"Control|Fill|Adapter|Framepack|Inpaint|GLIGEN|VACE|Condition|InContext|Layered|Upsample|Prior|Animate(?!Diff)"
)
"""Pipelines that a prompt or one picture does not run."""
_IS_VIDEO = re.compile(r"3D|Video|Temporal|Motion")


@dataclass(frozen=True)
class Task:
    """What a pipeline does.

    Args:
        tag: as `pipeline_tag` on the Hub. imports: names of `diffusers.utils` that the call needs. call: a line that runs `pipe`;
            "" where the call depends on more than a prompt or a picture.
    """

    tag: str
    imports: tuple[str, ...] = ()
    call: str = ""


def task_of(pipeline: str | None, denoiser: str) -> Task:
    """The task of a pipeline's class; where there is none, what the denoiser's class tells of it.

    Args:
        pipeline (`str`, *optional*): name of its class. denoiser (`str`): of the denoiser's.
    """
    found = getattr(diffusers, pipeline, None) if pipeline is not None else None
    if not isinstance(found, type):
        return Task(_tag_by_denoiser(denoiser))
    parameters = inspect.signature(found.__call__).parameters
    needed = {name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    tag = _tag_by_name(pipeline or "", parameters.keys(), needed)
    more = _NEEDS_MORE.search(pipeline or "") or needed - {"self", "prompt", "image", "video"}
    return Task(tag) if more else _with_call(tag, parameters.keys())


def _tag_by_name(name: str, parameters: Collection[str], needed: Collection[str]) -> str:
    moves = bool(_FRAMES & set(parameters)) or "Video" in name
    told = next((tag for pattern, tag in _NAMES if pattern.search(name)), None)
    if told is not None and not (moves and told == "image-to-image"):
        return told
    if moves:
        return next((f"{source}-to-video" for source in ("video", "image") if source in needed), "text-to-video")
    if "prompt" in parameters or "image_embeds" in parameters:
        return "text-to-image"
    return "image-to-image" if _GIVEN & set(parameters) - {"class_labels"} else "unconditional-image-generation"


def _tag_by_denoiser(name: str) -> str:
    if name in ("UNet2DModel", "DiTTransformer2DModel"):
        return "unconditional-image-generation"
    return "text-to-video" if _IS_VIDEO.search(name) else "text-to-image"


def _with_call(tag: str, parameters: Collection[str]) -> Task:
    """The task with the line that runs it, as its pipeline's call takes its arguments."""
    source, _, result = tag.partition("-to-")
    prompt = '"a cat in a hat"'
    arguments = {"text": prompt, "image": 'image=load_image("start.png")', "video": 'video=load_video("start.mp4")'}
    if source in arguments and {"text": "prompt"}.get(source, source) not in parameters:
        return Task(tag)
    if tag == "unconditional-image-generation":
        return Task(tag, (), "image = pipe().images[0]")
    given = arguments.get(source, "")
    if source in ("image", "video") and "prompt" in parameters:
        given += f", prompt={prompt}"
    imports = (f"load_{source}",) if source in ("image", "video") else ()
    if result == "image":
        return Task(tag, imports, f"image = pipe({given}).images[0]")
    if result == "video":
        return Task(tag, ("export_to_video", *imports), f'export_to_video(pipe({given}).frames[0], "cat.mp4")')
    return Task(tag)
