"""Recognise a file or folder by file names and headers alone."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import AIAOError, SuspectError
from ..files.paths import below, inside, list_weight_files
from ..files.safetensors_header import read_header
from ..files.strict_json import read_json
from ..files.text import short


TEXT_ENCODER_KEY = re.compile(
    r"^(base_model\.model\.)?(text_encoder(_\d)?\.|lora_te\d?_|lycoris_text_|text_model\.|text_projection)"
)
ADAPTER_KEY = re.compile(
    r"[._](lora\d?[._](A|B|up|down|mid|magnitude_vector|linear_layer)\b|lora_embedding_|hada_[wt]\d|lokr_[wt]\d|ia3_l\b|"
    r"oft_|glora_|dora_scale$|diff(_b)?$|[wb]_norm$|on_input$)"
)
DENOISER_FOLDERS = ("unet", "transformer")
LDM_PREFIX = "model.diffusion_model."
_LDM_HEADS = ("input_blocks.", "double_blocks.", "joint_blocks.")
EMA_PREFIX = "model_ema."
_BESIDE_A_LORA = {"textual_inversion", "text_encoder_only", "ip_adapter", "controlnet", "unknown"}
DIFFUSERS_PREFIXES = ("", "unet.", "transformer.", "model.", "module.", "denoiser.", LDM_PREFIX)


@dataclass(frozen=True)
class Detected:
    """What a file or folder is, judged by file names and headers alone.

    Args:
        kind: pipeline, denoiser, lora, textual_inversion, text_encoder_only, ip_adapter, controlnet, motion_adapter,
            single_file (original keys, or GGUF) or unknown.
        files: the weight files that the judgement rests on; empty for a pipeline or a folder with a model config.
        detail: what gave it away, for the report.
        warnings: what lies there too and is not part of the judgement.
    """

    kind: str
    files: tuple[Path, ...]
    detail: str
    warnings: tuple[str, ...] = ()


def kind_of_keys(keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """`Detected.kind` and what gave it away, from a header's names and shapes."""
    keys = list(keys)
    if not keys:
        return "unknown", "no tensor at all"
    adapter = [k for k in keys if ADAPTER_KEY.search(k)]
    if any(k.startswith(("image_proj.", "ip_adapter.", "ip_adapter_proj_model.")) or "_ip.weight" in k for k in keys):
        return "ip_adapter", "image projection keys"
    control = ("control_model.", "controlnet_", "lllite_", "adapter.body.", "body.0.")
    if any(k.startswith(control) or "lora_controlnet" in k for k in keys):
        return "controlnet", "control network keys"
    if all("motion_modules." in k for k in keys):
        return "motion_adapter", "motion modules alone"
    if adapter:
        if all(TEXT_ENCODER_KEY.match(k) for k in adapter):
            return "text_encoder_only", f"{len(adapter)} adapter keys, all of a text encoder"
        return "lora", f"{len(adapter)} adapter keys"
    if any(k.startswith((LDM_PREFIX, *_LDM_HEADS)) for k in keys):
        return "single_file", "keys of the original checkpoint layout"
    if all(k.startswith(EMA_PREFIX) for k in keys):
        return "unknown", "averaged (EMA) weights alone, in names that no stock tool loads"
    heads = tuple(f"{p}{h}" for p in DIFFUSERS_PREFIXES for h in ("down_blocks.", "transformer_blocks.", "conv_in."))
    if any(k.startswith(heads) for k in keys) and not any(k.startswith(("decoder.", "encoder.")) for k in keys):
        return "denoiser", "diffusers keys of a whole denoiser"
    if all(TEXT_ENCODER_KEY.match(k) for k in keys):
        return "text_encoder_only", "text encoder keys alone"
    if len(keys) <= 64 and all(
        len(shapes[k]) in (1, 2) and ("." not in k or k.startswith("<") or k == "emb_params") for k in keys
    ):
        return "textual_inversion", f"{len(keys)} embedding tensor(s) without module names"
    return "unknown", f"first key {short(min(keys))}"


def common_prefix(names: Iterable[str], expected: Mapping[str, object]) -> str:
    """The prefix under which most of the expected names are found; "" where none helps."""
    names = list(names)

    def matches(prefix: str) -> int:
        return sum(n.startswith(prefix) and n.removeprefix(prefix) in expected for n in names)

    return max(DIFFUSERS_PREFIXES, key=matches)


def detect(source: str | Path, weight_name: str | None = None) -> Detected:
    """Say what a file or folder holds without reading a tensor.

    Args:
        source: a file or folder. weight_name: the one file of the folder that is meant, whatever else lies there.
    Raises:
        SuspectError: nothing there. UnsafeFileError: a pickle, a hostile header, or a link out of the folder.
    """
    source = Path(source)
    if weight_name is not None:
        if not source.is_dir():
            raise SuspectError(f"weight_name={weight_name!r} needs a folder, but {source} is none")
        source = below(source, weight_name)
    if source.is_file():
        return _detect_file(source)
    if not source.is_dir():
        raise SuspectError(f"{source} is neither a file nor a folder")
    if (source / "model_index.json").is_file():
        name = read_json(source / "model_index.json").get("_class_name")
        return Detected("pipeline", (), f"model_index.json of {short(name)}", _bystanders(source))
    if (source / "adapter_config.json").is_file():
        return Detected("lora", list_weight_files(source), "adapter_config.json of peft")
    if (source / "config.json").is_file():
        name = read_json(source / "config.json").get("_class_name")
        if isinstance(name, str) and ("ControlNet" in name or "T2IAdapter" in name):
            return Detected("controlnet", (), f"config.json of {short(name)}")
        if isinstance(name, str) and "MotionAdapter" in name:
            return Detected("motion_adapter", (), f"config.json of {short(name)}")
        if is_denoiser_name(name):
            return Detected("denoiser", (), f"config.json of {short(name)}")
    # peft's own training scripts save an adapter folder for each part of the pipeline.
    for name in DENOISER_FOLDERS:
        if (source / name / "adapter_config.json").is_file():
            return detect(source / name)
    found = [detect(file) for file in list_weight_files(source)]
    adapters = [d for d in found if d.kind == "lora"]
    others = [d for d in found if d.kind != "lora"]
    if adapters and {d.kind for d in others} <= _BESIDE_A_LORA:
        names = ", ".join(f"{d.files[0].name} ({d.kind})" for d in others)
        notes = (f"the folder also holds {names}, which changes no denoiser by itself",) if others else ()
        files = tuple(d.files[0] for d in adapters)
        return Detected("lora", files, adapters[0].detail, (*adapters[0].warnings, *notes))
    kinds = sorted({d.kind for d in found})
    files = tuple(file for d in found for file in d.files)
    if len(kinds) > 1:
        return Detected("unknown", files, f"files of several kinds: {', '.join(kinds)}; name one with weight_name=")
    return Detected(kinds[0], files, found[0].detail, found[0].warnings)


def _detect_file(path: Path) -> Detected:
    if path.suffix.lower() == ".gguf":
        return Detected("single_file", (path,), "GGUF")
    header = read_header(path)
    kind, detail = kind_of_keys(header.tensors, {k: t.shape for k, t in header.tensors.items()})
    averaged = sum(key.startswith(EMA_PREFIX) for key in header.tensors)
    notes: tuple[str, ...] = ()
    if kind == "single_file" and averaged:
        notes = (
            f"the file also holds {averaged} averaged (EMA) weights; the plain ones were read, as stock tools do",
        )
    return Detected(kind, (path,), detail, notes)


def _bystanders(folder: Path) -> tuple[str, ...]:
    """Adapters that lie in a pipeline's folder: a verdict on the pipeline says nothing about them."""
    found = [f"{name}/" for name in DENOISER_FOLDERS if (folder / name / "adapter_config.json").is_file()]
    for file in sorted(folder.glob("*.safetensors")):
        try:
            found += [file.name] if _detect_file(inside(folder, file.name)).kind == "lora" else []
        except AIAOError:
            continue  # a broken file that nobody reads is no reason to refuse the pipeline
    if not found:
        return ()
    return (f"the folder also holds adapters that were not applied: {', '.join(found)}; verify each by weight_name=",)


def is_denoiser_name(name: object) -> bool:
    return isinstance(name, str) and "ControlNet" not in name and ("UNet" in name or "Transformer" in name)
