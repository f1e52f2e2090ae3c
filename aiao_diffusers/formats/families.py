"""The family of denoisers (SD 1, SD 2, XL, SD 3, FLUX, Wan, ...) that a file looks made for; a new family is a row of the table.

Judgements for error messages and refusals, never for a verdict; nothing here loads a tensor.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .module_names import strip_wrappers


_TEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
"""Stable Diffusion's generations differ in the width of the text that cross-attention reads."""
_KOHYA = re.compile(r"^(?:lora|lycoris|oft)_(?:unet_|transformer_(?!blocks))?")
_UNET = re.compile(r"(?:(?:down|up|mid)\.blocks?|(?:in|out)put\.blocks|middle\.block)\.")
_NOT_STABLE_DIFFUSION = re.compile(
    r"temp(?:oral)?\.(?:conv|attention|transformer|res)|transformer\.in\.|motion\.modules|attn2\.norm\.q|^(?:base|ctrl|control)\.|\.(?:base|ctrl)\."
)
"""Names in U-Nets of videos, and of control networks around one, which have Stable Diffusion's widths."""
# The weight that reads the input, or the factor of an adapter that does: its last dimension is the width.
_READS = r"\.(?:processor\.)?(?:lora\.)?(?:weight$|(?:lora\.)?(?:down|A)\b|hada\.w1\.b)"
_CROSS = re.compile(rf"attn2\.(?:processor\.)?to\.[kv]{_READS}")
_SECOND_ENCODER = ("lora_te2_", "text_encoder_2.", "conditioner.embedders.1.")
_ROOT = r"^transformer\.blocks\.\d+\."
_BARE = r"^blocks\.\d+\."
_SINGLE = r"^single\.transformer\.blocks\.\d+\."
_LAYER = r"^(?:layers|noise\.refiner|context\.refiner)\.\d+\."


@dataclass(frozen=True)
class _Row:
    """One way to tell a family.

    Args:
        label: for messages. pattern: what some key has, its `_` read as `.`. widths: one of which that key's last dimension has;
            none: any. families: that the label speaks of; default: itself. also: what another key must have.
    """

    label: str
    pattern: str
    widths: tuple[int, ...] = ()
    families: frozenset[str] = frozenset()
    also: str = ""


_FLUX_KIN = frozenset({"FLUX.1", "Chroma", "HunyuanVideo", "relative"})
_TABLE = (
    _Row(
        "AuraFlow",
        rf"joint\.transformer\.blocks\.\d|(?:double|single)\.layers\.\d|{_SINGLE}ff\.(?:linear\.\d|out\.projection)",
    ),
    _Row("HiDream", r"(?:double|single)\.stream\.blocks\.\d+\.block\."),
    _Row("FLUX.3", r"mode\.blocks\.\d|early\.stream\.modulations"),
    _Row("FLUX.2", rf"to\.qkv\.mlp\.proj|stream\.modulation\.|{_ROOT}ff\.(?:context\.)?linear\.(?:in|out)"),
    _Row(
        "FLUX.2",
        rf"{_ROOT}attn\.add\.[qkv]\.proj{_READS}|double\.blocks\.\d+\.(?:img|txt)\.attn\.(?:qkv|proj){_READS}",
        (4096, 6144),
    ),
    _Row("Chroma", r"distilled\.guidance\.layer\."),
    _Row("Krea 2", r"\.attn\.to\.gate\.|text\.fusion\.|txtfusion\."),
    _Row("Qwen-Image 2.1", r"\.img\.mlp\.gate\.(?:layer|up)\."),
    _Row("Qwen-Image", rf"{_ROOT}txt\.(?:mod|mlp)\."),
    _Row("Mochi", rf"{_ROOT}attn1\.(?:add\.[qkv]\.proj|to\.add\.out)|blocks\.\d+\.attn\.qkv\.[xy]\."),
    _Row("LTX-2", r"transformer\.blocks\.\d+\.(?:audio\.attn|audio\.to\.video|video\.to\.audio)"),
    _Row("LTX-Video", r"patchify\.proj\."),
    _Row("LTX-Video", rf"{_ROOT}attn2\.to\.[kv]{_READS}", (2048,)),
    _Row("Cosmos", rf"{_ROOT}norm3\.linear\.[12]\.|^net\.blocks\.(?:block)?\d"),
    _Row("Cosmos", rf"{_ROOT}attn2\.to\.[kv]{_READS}", (1024,)),
    _Row("Sana", rf"{_ROOT}ff\.conv\."),
    _Row("Sana", rf"{_ROOT}attn[12]\.to\.[qkv]{_READS}", (2240,)),
    _Row("PixArt", rf"{_ROOT}attn2\.to\.[kv]{_READS}", (1152,), also=r"^adaln\.single\."),
    _Row("PixArt or Sana", rf"{_ROOT}attn2\.to\.[kv]{_READS}", (1152,), frozenset({"PixArt", "Sana"})),
    _Row("Allegro", rf"{_ROOT}attn[12]\.to\.[qkv]{_READS}", (2304,)),
    _Row("CogVideoX", rf"{_ROOT}attn1\.to\.[qkv]{_READS}", (1920,)),
    _Row("CogVideoX or Mochi", rf"{_ROOT}attn1\.to\.[qkv]{_READS}", (3072,), frozenset({"CogVideoX", "Mochi"})),
    _Row("Kandinsky 5 or 6", r"visual\.transformer\.blocks\.\d"),
    _Row("Z-Image", rf"{_LAYER}attention\.(?:to\.[qkv]|qkv){_READS}", (3840,)),
    _Row("Ideogram 4", rf"{_LAYER}attention\.(?:to\.[qkv]|qkv){_READS}", (4608,)),
    _Row("Lumina 2", rf"{_LAYER}(?:attn\.to\.[qkv]|attention\.qkv){_READS}", (2304,)),
    _Row("ERNIE-Image", rf"{_LAYER}self\.attention\.to\."),
    _Row(
        "Wan or a relative",
        rf"{_BARE}(?:attn[12]\.(?:to|add)\.[qkv](?:\.proj)?|(?:self|cross)\.attn\.[qkv]){_READS}",
        (1536, 3072, 5120),
        frozenset({"Wan"}),
    ),
    _Row(
        "Stable Diffusion 3 Medium",
        rf"{_ROOT}attn\.(?:to\.[qkv]|add\.[qkv]\.proj){_READS}",
        (1536,),
        frozenset({"SD 3 M"}),
    ),
    _Row(
        "Stable Diffusion 3.5 Large",
        rf"{_ROOT}attn\.(?:to\.[qkv]|add\.[qkv]\.proj){_READS}",
        (2432,),
        frozenset({"SD 3.5 L"}),
    ),
    _Row("Stable Diffusion 3.x", r"joint\.blocks\.\d", families=frozenset({"SD 3 M", "SD 3.5 L"})),
    _Row("HunyuanVideo 1.5", r"cond\.type\.embed"),
    _Row("HunyuanImage", rf"{_ROOT}attn\.(?:to\.[qkv]|add\.[qkv]\.proj){_READS}", (3584,)),
    _Row(
        "HunyuanVideo or HunyuanImage",
        r"context\.embedder\.token\.refiner\.|individual\.token\.refiner",
        families=frozenset({"HunyuanVideo", "HunyuanVideo 1.5", "HunyuanImage"}),
    ),
    _Row("JoyImage", r"double\.blocks\.\d+\.(?:attn\.(?:img|txt)|(?:img|txt)\.(?:mod\.modulate|mlp\.net))"),
    _Row("FLUX.1", r"^time\.text\.embed\.text\.embedder\.|^vector\.in\.", also=rf"{_SINGLE}|^single\.blocks\.\d"),
    _Row(
        "FLUX.1 or a relative (Chroma, HunyuanVideo)",
        rf"{_SINGLE}(?:proj\.(?:mlp|out)|norm\.linear)|(?:double|single)\.blocks\.\d",
        families=_FLUX_KIN,
    ),
    _Row(
        "FLUX.1 or a relative (Chroma, HunyuanVideo, AuraFlow)",
        rf"{_SINGLE}attn\.",
        families=_FLUX_KIN | {"AuraFlow", "FLUX.3"},
    ),
    _Row(
        "FLUX.1 or a relative (Chroma, HunyuanVideo, Qwen-Image)",
        rf"{_ROOT}attn\.(?:to\.[qkv]|add\.[qkv]\.proj){_READS}",
        (3072,),
        _FLUX_KIN | {"Qwen-Image", "FLUX.2"},
    ),
)
"""The first row that fits; marks of whole models and of rare names come before widths, which relatives share."""
_COMPILED = tuple((row, re.compile(row.pattern), re.compile(row.also)) for row in _TABLE)


@dataclass(frozen=True)
class _Facts:
    """What names and widths of a file say, each once: names with `.` for `_` and 0 for every number."""

    names: frozenset[tuple[str, int]]
    stacked: bool
    """Whether a place of a U-Net holds several transformer blocks."""


def _facts(shapes: Mapping[str, tuple[int, ...]]) -> _Facts:
    names, stacked = set(), False
    for key, shape in shapes.items():
        # Without what stands before the names: a pipeline's `transformer.blocks` is not a denoiser's `transformer_blocks`.
        flat = _KOHYA.sub("", strip_wrappers(key)).replace("_", ".")
        stacked |= bool(re.search(r"transformer\.blocks\.[1-9]", flat) and _UNET.search(flat))
        names.add((re.sub(r"(?<=\.)\d+(?=\.)", "0", flat), shape[-1] if shape else 0))
    return _Facts(frozenset(names), stacked)


def _family_of(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, frozenset[str]] | None:
    """The label for messages, and the families that it may mean."""
    facts = _facts(shapes)
    if any(_UNET.search(name) for name, _ in facts.names):
        label = _generation(facts)
        return None if label is None else (label, frozenset({label}))
    for row, pattern, also in _COMPILED:
        told = any((not row.widths or width in row.widths) and pattern.search(name) for name, width in facts.names)
        if told and any(also.search(name) for name, _ in facts.names):
            return row.label, row.families or frozenset({row.label})
    if any(key.startswith(_SECOND_ENCODER) for key in shapes):
        return _TEXT_WIDTHS[2048], frozenset({_TEXT_WIDTHS[2048]})
    return None


def _generation(facts: _Facts) -> str | None:
    """Of a U-Net, by the text that it reads; only XL stacks several transformer blocks in one place."""
    if any(_NOT_STABLE_DIFFUSION.search(name) for name, _ in facts.names):
        return None
    found = {_TEXT_WIDTHS[width] for name, width in facts.names if width in _TEXT_WIDTHS and _CROSS.search(name)}
    if not found and facts.stacked:
        return _TEXT_WIDTHS[2048]
    return found.pop() if len(found) == 1 else None


def likely_base(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """The family that an adapter or a denoiser looks made for, or None where nothing gives it away.

    Args:
        shapes: name -> shape, of a file or of a denoiser's state.
    """
    found = _family_of(shapes)
    return None if found is None else found[0]


def base_hint(file: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]) -> str:
    """A sentence naming the likely base of `file` and what `base` looks like; empty where the file tells nothing."""
    wanted, given = likely_base(file), likely_base(base)
    if wanted is None:
        return ""
    return f" The file looks made for {wanted}{f', the base given is {given}' if given else ''}."


def differ(file: Mapping[str, tuple[int, ...]], base: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether `file` and `base` are of two known families, which no label of them has in common."""
    wanted, given = _family_of(file), _family_of(base)
    return wanted is not None and given is not None and not wanted[1] & given[1]
