"""Full models as people upload them: recognise a file or folder, and load its denoiser strictly.

Order of work: file names, then headers (`safefile`), then names and shapes against the model class built without
memory, and only then tensor bytes through diffusers.

Upstream behaviour guarded here: diffusers fills missing weights with random ones and only logs it; follows any file
name in a shard index; takes pickles where no safetensors file exists; builds whatever size a config asks for; and its
single-file converter leaves out what it does not know.
"""

import copy
import importlib.util
import re
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin
from safetensors import SafetensorError
from torch import nn

from .errors import NotTestableError, SuspectError, UnsafeFileError, WrongBaseError
from .safefile import (
    MAX_HEADER_BYTES,
    Header,
    TensorInfo,
    check_finite,
    inside,
    list_weight_files,
    load_tensors,
    parse_json,
    read_header,
    read_json,
    refuse_pickle,
    short,
    tensor_sha256,
)


__all__ = [
    "MAX_HEADER_BYTES",
    "Detected",
    "Header",
    "TensorInfo",
    "check_finite",
    "detect",
    "inside",
    "list_weight_files",
    "load_denoiser",
    "load_tensors",
    "parse_json",
    "read_header",
    "read_json",
    "short",
    "tensor_sha256",
]

TEXT_ENCODER_KEY = re.compile(
    r"^(base_model\.model\.)?(text_encoder(_\d)?\.|lora_te\d?_|lycoris_text_|text_model\.|text_projection)"
)
ADAPTER_KEY = re.compile(
    r"[._](lora[._](A|B|up|down|mid|magnitude_vector|linear_layer)\b|lora_embedding_|hada_[wt]\d|lokr_[wt]\d|ia3_l\b|"
    r"oft_|glora_|dora_scale$|diff(_b)?$|[wb]_norm$|on_input$)"
)
DENOISER_FOLDERS = ("unet", "transformer")
_LDM_PREFIX = "model.diffusion_model."
DIFFUSERS_PREFIXES = ("", "unet.", "transformer.", "model.", "module.", "denoiser.", _LDM_PREFIX)
_UPSTREAM_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    TypeError,
    ValueError,
)
"""What diffusers and torch raise on a config or file that does not fit; Ctrl-C and MemoryError pass through."""


@dataclass(frozen=True)
class Detected:
    """What a file or folder is, judged by file names and headers alone.

    Args:
        kind: pipeline, denoiser, lora, textual_inversion, text_encoder_only, ip_adapter, controlnet, single_file
            (original LDM keys, or GGUF) or unknown.
        files: the weight files that the judgement rests on; empty for a pipeline or a folder with a model config.
        detail: what gave it away, for the report.
    """

    kind: str
    files: tuple[Path, ...]
    detail: str


def kind_of_keys(keys: Iterable[str], shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, str]:
    """`Detected.kind` and what gave it away, from a header's names and shapes."""
    keys = list(keys)
    if not keys:
        return "unknown", "no tensor at all"
    adapter = [k for k in keys if ADAPTER_KEY.search(k)]
    if any(k.startswith(("image_proj.", "ip_adapter.")) or "_ip.weight" in k for k in keys):
        return "ip_adapter", "image projection keys"
    if any(k.startswith(("control_model.", "controlnet_", "lllite_")) or "lora_controlnet" in k for k in keys):
        return "controlnet", "control network keys"
    if adapter:
        if all(TEXT_ENCODER_KEY.match(k) for k in adapter):
            return "text_encoder_only", f"{len(adapter)} adapter keys, all of a text encoder"
        return "lora", f"{len(adapter)} adapter keys"
    if any(k.startswith(_LDM_PREFIX) for k in keys) or any(
        k.startswith(("input_blocks.", "double_blocks.")) for k in keys
    ):
        return "single_file", "keys of the original checkpoint layout"
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


def detect(source: str | Path) -> Detected:
    """Say what a file or folder holds without reading a tensor.

    Raises:
        SuspectError: nothing there. UnsafeFileError: a pickle, a hostile header, or a link out of the folder.
    """
    source = Path(source)
    if source.is_file():
        if source.suffix.lower() == ".gguf":
            return Detected("single_file", (source,), "GGUF")
        header = read_header(source)
        kind, detail = kind_of_keys(header.tensors, {k: t.shape for k, t in header.tensors.items()})
        return Detected(kind, (source,), detail)
    if not source.is_dir():
        raise SuspectError(f"{source} is neither a file nor a folder")
    if (source / "model_index.json").is_file():
        name = read_json(source / "model_index.json").get("_class_name")
        return Detected("pipeline", (), f"model_index.json of {short(name)}")
    if (source / "adapter_config.json").is_file():
        return Detected("lora", list_weight_files(source), "adapter_config.json of peft")
    if (source / "config.json").is_file():
        name = read_json(source / "config.json").get("_class_name")
        if isinstance(name, str) and ("ControlNet" in name or "T2IAdapter" in name):
            return Detected("controlnet", (), f"config.json of {short(name)}")
        if _is_denoiser_name(name):
            return Detected("denoiser", (), f"config.json of {short(name)}")
    found = [detect(file) for file in list_weight_files(source)]
    kinds = sorted({d.kind for d in found})
    files = tuple(file for d in found for file in d.files)
    if len(kinds) > 1:
        return Detected("unknown", files, f"files of several kinds: {', '.join(kinds)}")
    return Detected(kinds[0], files, found[0].detail)


def _is_denoiser_name(name: object) -> bool:
    return isinstance(name, str) and "ControlNet" not in name and ("UNet" in name or "Transformer" in name)


def _denoiser_class(name: object, where: Path) -> type[ModelMixin]:
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise SuspectError(f"{where}: _class_name is {short(name)}, expected the name of a diffusers model")
    found = getattr(diffusers, name, None)
    # Only classes that diffusers itself exports: a class named by a repository must never be imported.
    if not isinstance(found, type) or not issubclass(found, ModelMixin) or not _is_denoiser_name(name):
        raise SuspectError(f"{where}: {short(name)} is no denoiser of diffusers {diffusers.__version__}")
    return found


def _check_config(value: Any, tensors: int, key: str = "", depth: int = 0) -> None:
    """Bound a config before a model is built from it: one entry may ask for 10^9 layers, which no file backs."""
    if depth > 6:
        raise UnsafeFileError("config.json is nested deeper than any model config")
    if isinstance(value, dict):
        for name, item in value.items():
            _check_config(item, tensors, name, depth + 1)
    elif isinstance(value, list):
        if len(value) > max(tensors, 64):
            raise UnsafeFileError(f"config.json: {short(key)} lists {len(value)} entries for {tensors} tensors")
        for item in value:
            _check_config(item, tensors, key, depth + 1)
    elif isinstance(value, int | float):
        limit = 2**22
        if re.search(r"layers|blocks|depth|stages", key):
            limit = max(tensors, 1)
        elif re.search(r"size|length", key):
            # Position tables grow with its square in memory that the meta device does not spare.
            limit = 2**12
        if abs(value) > limit:
            raise UnsafeFileError(f"config.json: {short(key)} is {short(value)}, at most {limit} fits this file")


def compare_shapes(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Names and shapes must agree exactly; a weight left at random would make every verdict about noise."""
    for name in sorted(expected.keys() & found.keys()):
        if expected[name] != found[name]:
            raise WrongBaseError(
                f"{what}: {short(name)} has shape {list(found[name])}, the model needs {list(expected[name])}"
            )
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise WrongBaseError(
            f"{what}: {len(missing)} of {len(expected)} weights are missing (first {short(missing[:1])}), "
            f"{len(extra)} are unknown to the model (first {short(extra[:1])})"
        )


def _shards(folder: Path) -> tuple[list[Path], str | None]:
    """Weight files of a denoiser folder, and the variant to ask diffusers for."""
    names = sorted(p.name for p in folder.iterdir() if p.name.startswith("diffusion_pytorch_model"))
    single = [n for n in names if re.fullmatch(r"diffusion_pytorch_model(\.[\w-]+)?\.safetensors", n)]
    single = [n for n in single if not re.search(r"-\d{5}-of-\d{5}", n)]
    index = [n for n in names if re.fullmatch(r"diffusion_pytorch_model\.safetensors\.index(\.[\w-]+)?\.json", n)]
    for choices, pattern in ((single, r"model(?:\.([\w-]+))?\.safetensors$"), (index, r"index(?:\.([\w-]+))?\.json$")):
        if not choices:
            continue
        # The plain file sorts anywhere; it is the one without a variant.
        variants = {(m.group(1) if (m := re.search(pattern, n)) else None): n for n in choices}
        if None not in variants and len(variants) > 1:
            raise SuspectError(f"{folder} holds several variants {sorted(map(str, variants))} and no plain file")
        variant = None if None in variants else next(iter(variants))
        path = inside(folder, variants[variant])
        return (_index_files(folder, path) if choices is index else [path]), variant
    for name in names:
        refuse_pickle(Path(name))
    raise SuspectError(f"{folder} holds no diffusion_pytorch_model safetensors file")


def _index_files(folder: Path, path: Path) -> list[Path]:
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise UnsafeFileError(f"{path.name!r}: weight_map must map tensor names to file names")
    files = {name: inside(folder, name) for name in sorted(set(weight_map.values()))}
    for name, file in files.items():
        held = read_header(file).tensors.keys()
        listed = {key for key, value in weight_map.items() if value == name}
        if held != listed:
            odd = min(held ^ listed)
            raise SuspectError(
                f"{path.name!r} and {name!r} disagree on {len(held ^ listed)} tensors, first {short(odd)}"
            )
    return list(files.values())


def modern_attention(name: str) -> str:
    """Attention names of diffusers before 0.15, which its loader still renames."""
    name = re.sub(r"(attentions\.\d+)\.proj_attn\.", r"\1.to_out.0.", name)
    return re.sub(r"(attentions\.\d+)\.(q|k|v)(uery|ey|alue)\.", r"\1.to_\2.", name)


def _from_folder(folder: Path, dtype: torch.dtype | None) -> nn.Module:
    config = read_json(folder / "config.json")
    model_class = _denoiser_class(config.get("_class_name"), folder / "config.json")
    if config.get("quantization_config") is not None:
        raise NotTestableError(
            f"{folder} is stored quantised ({short(config['quantization_config'])}): load it with its own library and "
            f"pass the dequantised denoiser instead"
        )
    files, variant = _shards(folder)
    found: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, info in read_header(file).tensors.items():
            found[name] = info.shape
    _check_config(config, len(found))
    try:
        with torch.device("meta"):
            blank = model_class.from_config(config)
        expected = {name: tuple(t.shape) for name, t in blank.state_dict().items()}
    except _UPSTREAM_ERRORS as error:
        raise SuspectError(
            f"{folder}: {model_class.__name__} cannot be built from config.json: {short(str(error))}"
        ) from error
    if any(".proj_attn." in name for name in found) and not any(".proj_attn." in name for name in expected):
        found = {modern_attention(name): shape for name, shape in found.items()}
    compare_shapes(expected, found, str(folder))
    try:
        model = model_class.from_pretrained(
            str(folder), variant=variant, torch_dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except _UPSTREAM_ERRORS as error:
        raise SuspectError(f"{folder}: diffusers could not load it: {short(str(error))}") from error
    return _finished(model, str(folder))


def _finished(model: nn.Module, what: str) -> nn.Module:
    state = model.state_dict()
    blank = [name for name, tensor in state.items() if tensor.is_meta]
    if blank:
        raise WrongBaseError(f"{what}: {len(blank)} weights were left empty, first {short(blank[0])}")
    check_finite(state, what)
    return model.eval()


def common_prefix(names: Iterable[str], expected: Mapping[str, object]) -> str:
    """The prefix under which most of the expected names are found; "" where none helps."""
    names = list(names)

    def matches(prefix: str) -> int:
        return sum(n.startswith(prefix) and n.removeprefix(prefix) in expected for n in names)

    return max(DIFFUSERS_PREFIXES, key=matches)


def _on_base(header: Header, base: nn.Module) -> nn.Module:
    """A whole denoiser state in diffusers keys, put into a copy of the base."""
    expected = {name: tuple(t.shape) for name, t in base.state_dict().items()}
    what = header.path.name

    prefix = common_prefix(header.tensors, expected)
    found = {k.removeprefix(prefix): t.shape for k, t in header.tensors.items() if k.startswith(prefix)}
    compare_shapes(expected, found, what)
    tensors = {k.removeprefix(prefix): t for k, t in load_tensors(header.path).items() if k.startswith(prefix)}
    check_finite(tensors, what)
    model = copy.deepcopy(base)
    model.load_state_dict(tensors, strict=True)
    return _finished(model, what)


def _from_single_file(path: Path, base: nn.Module) -> nn.Module:
    """Original-layout or GGUF checkpoint through diffusers' own converter, shaped by the base's config."""
    if not isinstance(base, ModelMixin) or not hasattr(type(base), "from_single_file"):
        raise SuspectError(f"{path.name!r} is an original-layout checkpoint, which {type(base).__name__} cannot read")
    shaped: Any = base  # ModelMixin's config methods are untyped
    options: dict[str, Any] = {}
    if path.suffix.lower() == ".gguf":
        if importlib.util.find_spec("gguf") is None:
            raise NotTestableError(f"{path.name!r} is a GGUF file: install the package gguf to read it")
        options["quantization_config"] = diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32)
    reference = next(t for t in base.state_dict().values() if t.is_floating_point())
    with tempfile.TemporaryDirectory() as folder:
        shaped.save_config(folder)
        try:
            model = type(shaped).from_single_file(
                str(path), config=folder, local_files_only=True, torch_dtype=reference.dtype, **options
            )
            if options:
                model.dequantize()
        except _UPSTREAM_ERRORS as error:
            raise WrongBaseError(
                f"{path.name!r} does not fit {type(base).__name__} of the base: {short(str(error), 300)}"
            ) from error
    compare_shapes(
        {name: tuple(t.shape) for name, t in base.state_dict().items()},
        {name: tuple(t.shape) for name, t in model.state_dict().items()},
        path.name,
    )
    return _finished(model, path.name)


def load_denoiser(
    source: str | Path, *, base: nn.Module | str | Path | None = None, dtype: torch.dtype | None = None
) -> nn.Module:
    """Load the denoiser of a pipeline folder, a denoiser folder or a single file.

    Args:
        source: a folder with `model_index.json` (its `unet/` or `transformer/` is loaded) or with `config.json`, or a
            whole-denoiser `.safetensors` (diffusers or original LDM keys) or `.gguf` file.
        base: for a single file, the denoiser (or its folder) whose architecture the file has. It is copied, never
            changed. Folders need none.
        dtype: of the result; None keeps diffusers' default for a folder, the base's dtype for a single file.
    Returns:
        The denoiser in eval mode; every weight came from the file, none is NaN or Inf.
    Raises:
        SuspectError: nothing there, another kind of file, or no base given. WrongBaseError: names or shapes do not fit.
        UnsafeFileError: pickle, hostile header, path trick. NotTestableError: NaN or Inf, or an unreadable quantisation.
    """
    source = Path(source)
    if source.is_dir():
        if (source / "model_index.json").is_file():
            read_json(source / "model_index.json")
            for name in DENOISER_FOLDERS:
                if (source / name / "config.json").is_file():
                    if not (source / name).resolve().is_relative_to(source.resolve()):
                        raise UnsafeFileError(f"{name!r} in {source.name!r} is a link out of its folder")
                    return _from_folder(source / name, dtype)
            raise SuspectError(f"{source} has neither of {', '.join(DENOISER_FOLDERS)} with a config.json")
        if (source / "config.json").is_file():
            return _from_folder(source, dtype)
    found = detect(source)
    if found.kind not in {"denoiser", "single_file"} or len(found.files) != 1:
        raise SuspectError(f"{source} is no whole denoiser but {found.kind} ({found.detail})")
    if base is None:
        raise SuspectError(f"{source} holds weights without a config: give base=, the denoiser it was made from")
    base_model = base if isinstance(base, nn.Module) else load_denoiser(base)
    (file,) = found.files
    if found.kind == "single_file":
        model = _from_single_file(file, base_model)
    else:
        model = _on_base(read_header(file), base_model)
    return model if dtype is None else model.to(dtype)
