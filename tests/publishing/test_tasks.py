"""Cards name what a pipeline does, and show a call that runs it."""

import inspect

import diffusers
import pytest
import torch
from _tiny import tiny_unconditional
from diffusers import DDPMPipeline, DDPMScheduler

from aiao_diffusers.publishing.tasks import Task, task_of


KNOWN = {
    "StableDiffusionPipeline": ("text-to-image", 'image = pipe("a cat in a hat").images[0]'),
    "StableDiffusionXLPipeline": ("text-to-image", 'image = pipe("a cat in a hat").images[0]'),
    "StableDiffusion3Pipeline": ("text-to-image", 'image = pipe("a cat in a hat").images[0]'),
    "FluxPipeline": ("text-to-image", 'image = pipe("a cat in a hat").images[0]'),
    "QwenImagePipeline": ("text-to-image", 'image = pipe("a cat in a hat").images[0]'),
    "ZImagePipeline": ("text-to-image", 'image = pipe("a cat in a hat").images[0]'),
    "Krea2Pipeline": ("text-to-image", 'image = pipe("a cat in a hat").images[0]'),
    "WanPipeline": ("text-to-video", 'export_to_video(pipe("a cat in a hat").frames[0], "cat.mp4")'),
    "LTXPipeline": ("text-to-video", 'export_to_video(pipe("a cat in a hat").frames[0], "cat.mp4")'),
    "HunyuanVideoPipeline": ("text-to-video", 'export_to_video(pipe("a cat in a hat").frames[0], "cat.mp4")'),
    "MochiPipeline": ("text-to-video", 'export_to_video(pipe("a cat in a hat").frames[0], "cat.mp4")'),
    "WanImageToVideoPipeline": (
        "image-to-video",
        'export_to_video(pipe(image=load_image("start.png"), prompt="a cat in a hat").frames[0], "cat.mp4")',
    ),
    "StableVideoDiffusionPipeline": (
        "image-to-video",
        'export_to_video(pipe(image=load_image("start.png")).frames[0], "cat.mp4")',
    ),
    "StableDiffusionImg2ImgPipeline": (
        "image-to-image",
        'image = pipe(image=load_image("start.png"), prompt="a cat in a hat").images[0]',
    ),
    "StableDiffusionInpaintPipeline": ("image-to-image", ""),
    "StableDiffusionControlNetPipeline": ("text-to-image", ""),
    "FluxKontextPipeline": (
        "image-to-image",
        'image = pipe(image=load_image("start.png"), prompt="a cat in a hat").images[0]',
    ),
    "WanVideoToVideoPipeline": (
        "video-to-video",
        'export_to_video(pipe(video=load_video("start.mp4"), prompt="a cat in a hat").frames[0], "cat.mp4")',
    ),
    "DDPMPipeline": ("unconditional-image-generation", "image = pipe().images[0]"),
    "DiTPipeline": ("unconditional-image-generation", ""),
    "StableAudioPipeline": ("text-to-audio", ""),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_task_and_its_call(name):
    task = task_of(name, "x")
    assert (task.tag, task.call) == KNOWN[name]
    compile(task.call, "card", "exec")
    assert all(f"{function}(" in task.call and hasattr(diffusers.utils, function) for function in task.imports)


@pytest.mark.parametrize(
    ("denoiser", "tag"),
    [
        ("UNet2DConditionModel", "text-to-image"),
        ("UNet2DModel", "unconditional-image-generation"),
        ("FluxTransformer2DModel", "text-to-image"),
        ("WanTransformer3DModel", "text-to-video"),
        ("UNetMotionModel", "text-to-video"),
    ],
)
def test_without_a_pipeline_the_denoiser_tells(denoiser, tag):
    assert task_of(None, denoiser) == task_of("NoSuchPipeline", denoiser) == Task(tag)


LISTS = {
    "TEXT2IMAGE": "text-to-image",
    "TEXT2VIDEO": "text-to-video",
    "IMAGE2IMAGE": "image-to-image",
    "INPAINT": "image-to-image",
    "IMAGE2VIDEO": "image-to-video",
    "CONDITION2VIDEO": "image-to-video",
    "VIDEO2VIDEO": "video-to-video",
    "TEXT2AUDIO": "text-to-audio",
}
# Pipelines that do more than the list says that they are in, or than their names.
ELSEWHERE = {
    "HeliosPipeline",
    "HeliosPyramidPipeline",
    "ZImageControlNetInpaintPipeline",
    "AnyFlowFARPipeline",
    "Cosmos3OmniPipeline",
}


@pytest.mark.slow
def test_names_say_what_the_lists_of_diffusers_say():
    from diffusers.pipelines import auto_pipeline

    listed: dict[str, set[str]] = {}
    for name, tag in LISTS.items():
        for pipeline in getattr(auto_pipeline, f"AUTO_{name}_PIPELINES_MAPPING", {}).values():
            listed.setdefault(pipeline.__name__, set()).add(tag)
    assert len(listed) > 60
    wrong = {name: task_of(name, "x").tag for name, tags in listed.items() if task_of(name, "x").tag not in tags}
    assert wrong.keys() <= ELSEWHERE, wrong


def test_the_call_of_an_unconditional_pipeline_runs():
    pipe = DDPMPipeline(tiny_unconditional().eval(), DDPMScheduler(num_train_timesteps=2))
    pipe.set_progress_bar_config(disable=True)
    names = {"pipe": lambda: pipe(num_inference_steps=1, generator=torch.Generator())}
    exec(task_of("DDPMPipeline", "x").call, names)
    assert names["image"].size == (8, 8)
    assert "prompt" not in inspect.signature(pipe.__call__).parameters
