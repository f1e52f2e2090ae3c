"""Recognise a file or folder by file names and headers alone; a new kind of file is told from the others here."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import AIAOError, SeveralSuspectsError, SuspectError, UnsafeFileError
from ..files.paths import below, list_weight_files
from ..files.safetensors_header import Header, read_header
from ..files.strict_json import read_json
from ..files.text import short
from .artifact import Artifact, Bystander
from .bystanders import PEFT_FILE, list_bystanders, names_below
from .layouts import is_diffusers, is_original
from .model_folder import (
    DENOISER_FOLDERS,
    WEIGHTS,
    choose_weights,
    class_of,
    is_denoiser_name,
    names_in,
    pipeline_parts,
    read_weight_headers,
    weight_sets,
)
from .module_names import strip_wrappers
from .packing import is_readable
from .unread_kinds import NOT_READ, find_unread_kind


TEXT_ENCODER_KEY = re.compile(
    r"(?:(?:base_model\.model|_orig_mod|module|model)\.)*(?:text_encoders?(?:_\d)?\.|lora_(?:prior_)?te\d?_|lycoris_text_|"
    r"text_model\.|text_projection|te\d?\.|(?:clip_[lg]|t5xxl)\.|cond_stage_model\.|conditioner\.embedders\.|bundle_emb\.)"
)
"""A tensor of a text encoder in the names of any trainer, or of the embeddings that one bundles with its adapters."""
ADAPTER_KEY = re.compile(
    r"[._](?:lora\d?[._](?:A|B|up|down|mid|magnitude_vector|linear_layer)\b|lora_embedding_|hada_[wt]\d|lokr_[wt]\d|ia3_l\b|"
    r"b?oft_|glora_|vera_(?:[AB]|lambda)|ln_tuning_layers|dora_scale$|diff(?:_b)?$|[wb]_norm$|on_input$)|"
    r"^(?:lora|lycoris)_[^.]+\.[ab][12]\.weight$"
)
LDM_PREFIX = "model.diffusion_model."
EMA_PREFIX = "model_ema."
_CONTROL = (
    "control_model.",
    "controlnet_",
    "control_blocks.",
    "control_layers.",
    "lllite_",
    "adapter.body.",
    "body.0.",
)
_BESIDE_A_LORA = {"textual_inversion", "text_encoder_only", "ip_adapter", "controlnet", "unknown"}
DIFFUSERS_PREFIXES = ("", "unet.", "transformer.", "model.", "module.", "denoiser.", LDM_PREFIX)


def kind_of_keys(keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """`Artifact.kind` and what gave it away, from a header's names and shapes."""
    keys = list(keys)
    if not keys:
        return "unknown", "no tensor at all"
    unread = find_unread_kind(k for k in keys if not TEXT_ENCODER_KEY.match(k))
    if unread is not None:
        return "lora", f"it {NOT_READ}: {unread}"
    adapter = [k for k in keys if ADAPTER_KEY.search(k)]
    if any(
        k.startswith(("image_proj.", "image_proj_model.", "ip_adapter.", "ip_adapter_proj_model."))
        or "_ip.weight" in k
        for k in keys
    ):
        return "ip_adapter", "image projection keys"
    if any(k.startswith(_CONTROL) or "lora_controlnet" in k for k in keys):
        return "controlnet", "control network keys"
    if all("motion_modules." in k for k in keys):
        return "motion_adapter", "motion modules alone"
    if adapter:
        if all(TEXT_ENCODER_KEY.match(k) for k in adapter):
            return "text_encoder_only", f"{len(adapter)} adapter keys, all of a text encoder"
        return "lora", f"{len(adapter)} adapter keys"
    plain = [strip_wrappers(k) for k in keys]
    if any(k.startswith(LDM_PREFIX) for k in keys) or is_original(plain):
        return "single_file", "keys of the original checkpoint layout"
    if all(k.startswith(EMA_PREFIX) for k in keys):
        return "unknown", "averaged (EMA) weights alone, in names that no stock tool loads"
    if is_diffusers(plain) or is_diffusers(k.removeprefix("model.") for k in plain):
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


def detect(source: str | Path, weight_name: str | None = None) -> Artifact:
    """Say what a file or folder holds, with the headers of what is meant, without reading a tensor.

    Of a folder that is judged which diffusers' `from_pretrained` runs; what else lies there is in `also_present`.

    Args:
        source: a file or folder. weight_name: the one file of the folder that is meant, whatever else lies there.
    Raises:
        SuspectError: nothing there, or a denoiser's folder without its weights. SeveralSuspectsError: several could be meant.
        UnsafeFileError: a pickle, a hostile header, or a link out of the folder.
    """
    source = _follow(source)
    if weight_name is not None:
        if not source.is_dir():
            raise SuspectError(f"weight_name={weight_name!r} needs a folder, but {source} is none")
        return _judge_named(below(source, weight_name))
    if source.is_file():
        return _judge_file(source)
    if not source.is_dir():
        raise SuspectError(f"no such folder or file: {source}")
    try:
        found = _judge_directory(source)
    except SeveralSuspectsError as error:
        error.also_present = _list_beside(source, set())
        raise
    return replace(found, also_present=_list_beside(source, _judged_names(source, found)))


def _follow(source: str | Path) -> Path:
    """A folder behind the links that the caller passes, which may lead anywhere; those within a folder may not."""
    source = Path(source)
    return source.resolve() if source.is_dir() and source.resolve() != source.absolute() else source


def _judge_named(path: Path) -> Artifact:
    """A file by name; weights of a denoiser's folder are read by its config."""
    folder = path.parent
    if WEIGHTS.fullmatch(path.name) and _is_denoiser_folder(folder):
        return _judge_folder(folder, read_json(folder / "config.json"), path.name)
    return _judge_file(path)


def _is_denoiser_folder(folder: Path) -> bool:
    config = folder / "config.json"
    try:
        return config.is_file() and is_denoiser_name(class_of(read_json(config))[0])
    except AIAOError:
        return False  # a broken config that nobody asked for


def _judge_directory(source: Path) -> Artifact:
    if (source / "model_index.json").is_file():
        return _judge_pipeline(source)
    native = (source / "adapter_config.json").is_file()
    config = read_json(source / "config.json") if (source / "config.json").is_file() else None
    name = None if config is None else class_of(config)[0]
    if config is not None and is_denoiser_name(name) and not (native and not weight_sets(names_in(source))):
        return _judge_folder(source, config)
    if native:
        found = detect_adapter(source)
        return replace(found, kind="lora", path=source, detail="adapter_config.json of peft")
    if isinstance(name, str) and ("ControlNet" in name or "T2IAdapter" in name):
        return Artifact("controlnet", source, (), (), f"config.json of {short(name)}", config=config)
    if isinstance(name, str) and "MotionAdapter" in name:
        return Artifact("motion_adapter", source, (), (), f"config.json of {short(name)}", config=config)
    # Training scripts save a folder for each part of the pipeline: of a whole denoiser, or as peft's own do of an adapter.
    for part in map(source.joinpath, DENOISER_FOLDERS):
        if _is_denoiser_folder(part) and weight_sets(names_in(part)):
            return _judge_folder(_within(source, part.name), read_json(part / "config.json"))
    for part in map(source.joinpath, DENOISER_FOLDERS):
        if (part / "adapter_config.json").is_file():
            return _judge_directory(part)
    return replace(_judge_together(source, [_judge_file(file) for file in list_weight_files(source)]), config=config)


def _judged_names(folder: Path, found: Artifact) -> set[str]:
    """What of a folder was judged: its weight files, and the index that names them. Of several candidates none was."""
    if found.several:
        return set()
    files = list(found.files)
    if found.config is not None and weight_sets(names := names_in(found.path)):
        files.append(found.path / choose_weights(names, str(found.path)).name)
    return {file.relative_to(folder).as_posix() for file in files}


def _list_beside(folder: Path, judged: set[str]) -> tuple[Bystander, ...]:
    """What else lies in a folder and somebody would load."""

    def kind_of(name: str) -> str | None:
        try:
            return _judge_file(below(folder, name)).kind
        except AIAOError:
            return None  # a broken file that nobody reads is no reason to refuse its neighbour

    def is_denoiser(part: str) -> bool:
        return _is_denoiser_folder(folder / part)

    return tuple(list_bystanders(names_below(folder), judged, is_denoiser, kind_of, _parts_of(folder)))


def _parts_of(folder: Path) -> list[str]:
    """Folders of the denoisers that a pipeline's model_index.json names; none where there is no index."""
    path = folder / "model_index.json"
    return (
        pipeline_parts(read_json(path), {item.name for item in folder.iterdir() if item.is_dir()})
        if path.is_file()
        else []
    )


def detect_denoiser(source: str | Path) -> Artifact:
    """`detect` for who wants a whole denoiser: a folder with a config is one, whatever adapter lies there too."""
    source = _follow(source)
    if source.is_dir() and not (source / "model_index.json").is_file() and (source / "config.json").is_file():
        return _judge_folder(source, read_json(source / "config.json"))
    return detect(source)


def detect_denoisers(source: str | Path) -> dict[str, Artifact]:
    """All denoisers that a source runs, by the folder of the pipeline that each lies in; the first is the one that `detect` judges.

    Wan 2.2 runs two, `transformer` and `transformer_2`. Whatever is no pipeline with several has one, under the name "".

    Raises:
        SuspectError, SeveralSuspectsError, UnsafeFileError: as `detect`, of each of them.
    """
    source = _follow(source)
    parts = _parts_of(source) if source.is_dir() else []
    if len(parts) < 2:
        return {"": detect_denoiser(source)}
    first = detect(source)
    return {parts[0]: first} | {part: _judge_part(source, part) for part in parts[1:]}


def detect_adapter(source: str | Path) -> Artifact:
    """`detect` for who wants an adapter: the one of a folder, whatever else lies there.

    Raises:
        SeveralSuspectsError: several adapters. SuspectError: nothing there, or no adapter. UnsafeFileError: as `detect`.
    """
    source = _follow(source)
    if not source.is_dir():
        return detect(source)
    native = (source / "adapter_config.json").is_file()
    for part in DENOISER_FOLDERS:
        if not native and (source / part / "adapter_config.json").is_file():
            return detect_adapter(source / part)
    files = list_weight_files(source)
    if len(files) == 1:
        return _judge_file(files[0])
    if native and source / PEFT_FILE in files:
        # peft would take its own file, `load_lora_weights` another: neither may be taken in silence.
        others = [artifact for file in files if file.name != PEFT_FILE and (artifact := _try_file(file)) is not None]
        own = _judge_file(source / PEFT_FILE)
        return only_adapter(source, [own, *others]) if any(other.kind == "lora" for other in others) else own
    return only_adapter(source, [_judge_file(file) for file in files])


def only_adapter(source: Path, found: Sequence[Artifact]) -> Artifact:
    """The one adapter among a folder's files; SuspectError where none or several could be meant."""
    adapters = [artifact for artifact in found if artifact.kind == "lora"]
    if len(adapters) == 1:
        return adapters[0]
    names = ", ".join(artifact.path.name for artifact in adapters or found)
    raise SeveralSuspectsError(f"{source} holds several candidates: {names}. Say which one with weight_name=")


def _judge_together(folder: Path, found: Sequence[Artifact]) -> Artifact:
    """What the files of a folder without a config are, one beside the other."""
    adapters = [artifact for artifact in found if artifact.kind == "lora"]
    others = [artifact for artifact in found if artifact.kind != "lora"]
    warnings = found[0].warnings
    if adapters and {artifact.kind for artifact in others} <= _BESIDE_A_LORA:
        names = ", ".join(f"{artifact.path.name} ({artifact.kind})" for artifact in others)
        notes = (
            (f"the folder also holds {names}, which leaves the denoiser's own weights as they are",) if others else ()
        )
        found, warnings = adapters, (*adapters[0].warnings, *notes)
    kinds = sorted({artifact.kind for artifact in found})
    kind, detail = kinds[0], found[0].detail
    if len(kinds) > 1:
        kind, detail = "unknown", f"files of several kinds: {', '.join(kinds)}; name one with weight_name="
        warnings = ()
    files = tuple(file for artifact in found for file in artifact.files)
    headers = tuple(header for artifact in found for header in artifact.headers)
    return Artifact(kind, folder, files, headers, detail, warnings)


def _judge_file(path: Path) -> Artifact:
    if path.suffix.lower() == ".gguf":
        return Artifact("single_file", path, (path,), (), "GGUF")
    return judge_header(read_header(path))


def _try_file(path: Path) -> Artifact | None:
    """`_judge_file` of a file that may be broken, since another one is read."""
    try:
        return _judge_file(path)
    except AIAOError:
        return None


def judge_header(header: Header) -> Artifact:
    """What one file is by its header, wherever that was read."""
    kind, detail = kind_of_keys(header.tensors, {k: t.shape for k, t in header.tensors.items()})
    averaged = sum(key.startswith(EMA_PREFIX) for key in header.tensors)
    notes: tuple[str, ...] = ()
    if kind == "single_file" and averaged:
        notes = (
            f"the file also holds {averaged} averaged (EMA) weights; the plain ones were read, as stock tools do",
        )
    return Artifact(kind, header.path, (header.path,), (header,), detail, notes)


def _judge_folder(folder: Path, config: Mapping[str, Any], name: str | None = None) -> Artifact:
    """A denoiser's folder. What its loader refuses by the config alone is not opened, so that the reason is the config."""
    detail = f"config.json of {short(config.get('_class_name'))}"
    if not is_readable(config.get("quantization_config")):
        return Artifact("denoiser", folder, (), (), detail, config=config)
    headers = read_weight_headers(folder, name)
    return Artifact("denoiser", folder, tuple(h.path for h in headers), headers, detail, config=config)


def _judge_pipeline(folder: Path) -> Artifact:
    """A pipeline by the denoiser that its model_index.json names; without any, an artifact without a config."""
    index = read_json(folder / "model_index.json")
    detail = f"model_index.json of {short(index.get('_class_name'))}"
    parts = _parts_of(folder)
    warnings: tuple[str, ...] = ()
    if not parts:
        parts = [name for name in DENOISER_FOLDERS if (folder / name / "config.json").is_file()]
        if parts and any(isinstance(value, list) for value in index.values()):
            warnings = (
                f"model_index.json names no denoiser, so a pipeline of this folder runs none: {parts[0]}/ was read",
            )
    if not parts:
        return Artifact("pipeline", folder, (), (), detail)
    return replace(_judge_part(folder, parts[0]), kind="pipeline", detail=detail, warnings=warnings)


def _judge_part(folder: Path, name: str) -> Artifact:
    """One denoiser of a pipeline."""
    part = _within(folder, name)
    if not (part / "config.json").is_file():
        raise SuspectError(f"the denoiser that model_index.json of {folder} names is not there: no {part}/config.json")
    return _judge_folder(part, read_json(part / "config.json"))


def _within(folder: Path, part: str) -> Path:
    """A folder's part, which may be a link within it."""
    if not (folder / part).resolve().is_relative_to(folder.resolve()):
        raise UnsafeFileError(f"{part!r} in {folder.name!r} is a link out of its folder")
    return folder / part
