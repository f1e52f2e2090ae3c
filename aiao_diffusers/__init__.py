"""Traceable diffusion models: a secret watermark in the denoiser, provable from a suspect's weights.

Public names are imported on first use (PEP 562), so that `import aiao_diffusers` and `aiao --help` start at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .denoiser.inputs import LatentData
    from .denoiser.probes import Probes, capture_probes
    from .embedding.commit import commit
    from .embedding.config import EmbedConfig
    from .embedding.embed import embed
    from .embedding.layer_profile import LayerProfile, profile, self_profile
    from .embedding.report import EmbedReport
    from .errors import AIAOError
    from .mark.key import WatermarkKey
    from .mark.record import WatermarkRecord
    from .pipeline import WatermarkedPipeline, WatermarkedStableDiffusionPipeline
    from .protocol.commitment import Commitment
    from .protocol.leaves import Leaf, disclose
    from .publishing.push import push
    from .scanning.report import ScanReport
    from .scanning.scan import scan
    from .verification.report import VerificationReport
    from .verification.verify import verify


__version__ = "0.1.0.dev0"

__all__ = [
    "AIAOError",
    "Commitment",
    "EmbedConfig",
    "EmbedReport",
    "LatentData",
    "LayerProfile",
    "Leaf",
    "Probes",
    "ScanReport",
    "VerificationReport",
    "WatermarkKey",
    "WatermarkRecord",
    "WatermarkedPipeline",
    "WatermarkedStableDiffusionPipeline",
    "commit",
    "disclose",
    "capture_probes",
    "embed",
    "push",
    "profile",
    "self_profile",
    "scan",
    "verify",
]

# Public name -> module that defines it; the imports above say the same to type checkers.
_HOMES = {
    "AIAOError": "errors",
    "Commitment": "protocol.commitment",
    "EmbedConfig": "embedding.config",
    "EmbedReport": "embedding.report",
    "LatentData": "denoiser.inputs",
    "LayerProfile": "embedding.layer_profile",
    "Leaf": "protocol.leaves",
    "Probes": "denoiser.probes",
    "ScanReport": "scanning.report",
    "VerificationReport": "verification.report",
    "WatermarkKey": "mark.key",
    "WatermarkRecord": "mark.record",
    "WatermarkedPipeline": "pipeline",
    "WatermarkedStableDiffusionPipeline": "pipeline",
    "commit": "embedding.commit",
    "disclose": "protocol.leaves",
    "capture_probes": "denoiser.probes",
    "embed": "embedding.embed",
    "push": "publishing.push",
    "profile": "embedding.layer_profile",
    "self_profile": "embedding.layer_profile",
    "scan": "scanning.scan",
    "verify": "verification.verify",
}
_MODULES = frozenset(
    "bench cards cli data denoiser deprecation embedding errors files formats hub lineage mark pipeline protocol publishing "
    "record scanning stats verification".split()
)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
