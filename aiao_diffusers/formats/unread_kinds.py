"""Adapters that change a denoiser in a way that is not read here, told by their keys, so that a refusal names them.

A new one that nothing here merges gets a line below; one that is read gets its roles in `adapter_keys`.
"""

import re
from collections.abc import Iterable


_PEFT = {
    "adamss": "AdaMSS",
    "beft": "BEFT",
    "bone": "Bone",
    "c3a": "C3A",
    "deft": "DEFT",
    "delora": "DeLoRA",
    "fourierft": "FourierFT",
    "frod": "FRoD",
    "gralora": "GraLoRA",
    "hira": "HiRA",
    "hra": "HRA",
    "ia3": "IA3",
    "lily": "Lily",
    "miss": "MiSS",
    "osf": "OSF",
    "peanut": "PEANuT",
    "poly": "Poly",
    "psoft": "PSOFT",
    "pvera": "PVeRA",
    "randlora": "RandLoRA",
    "road": "RoAd",
    "shira": "SHiRA",
    "supertuning": "SuperTuning",
    "tinylora": "TinyLoRA",
    "unilora": "UniLoRA",
    "vblora": "VB-LoRA",
    "waveft": "WaveFT",
}
"""peft's prefix of a method's tensors -> the method."""
_TENSOR_OF_PEFT = re.compile(rf"\.({'|'.join(_PEFT)})_\w")
_BY_KEY = (
    (re.compile(r"_custom_diffusion\."), "Custom Diffusion"),
    (re.compile(r"^unet:\d+:(?:up|down)$"), "LoRA whose layers are numbered, not named (`unet:0:up`)"),
    (re.compile(r"\.(?:oft_[rs])$"), "OFT of peft before 0.14"),
    (re.compile(r"\.(?:lambda_layer|[qp]_layer\.weight)$"), "T-LoRA"),
    (re.compile(r"(?:lora_unet_|lycoris_)[^.]*\.(?:on_input|bm\.weight)$"), "IA3 or GLoRA in a form of LyCORIS"),
)
_SHIFTS = re.compile(r"\.delta$")
_IMAGE_PROMPT = ("image_proj.", "image_proj_model.", "ip_adapter.", "adapter_modules.")
NOT_READ = "changes the denoiser in a way that is not read here"


def name_of_peft_type(kind: object) -> str | None:
    """`FourierFT of peft` for peft's `FOURIERFT`; None for a type that is not known here."""
    name = _PEFT.get(kind.lower()) if isinstance(kind, str) else None
    return None if name is None else f"{name} of peft"


def find_unread_kind(keys: Iterable[str]) -> str | None:
    """The method that some keys of a file belong to, where it is one that is known and not read; else None.

    Args:
        keys: those of the file, text encoders left out.
    """
    keys = list(keys)
    for key in keys:
        for pattern, name in _BY_KEY:
            if pattern.search(key):
                return name
        found = _TENSOR_OF_PEFT.search(key)
        if found:
            return name_of_peft_type(found[1])
    if keys and all(_SHIFTS.search(key) for key in keys):
        return "SVDiff (shifts of singular values)"
    images = [key for key in keys if key.startswith(_IMAGE_PROMPT)]
    if images and any(key.startswith("unet.") for key in keys):
        return "IP-Adapter beside weights of a U-Net (`unet.`)"
    if any("_lora." in key for key in images):
        return "IP-Adapter with a LoRA in it (FaceID)"
    return None
