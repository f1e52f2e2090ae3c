"""Traceable diffusion models: a secret watermark in the denoiser, provable from a suspect's weights."""

from .denoiser.inputs import LatentData
from .embedding.embed import EmbedConfig, EmbedReport, embed
from .embedding.layer_profile import LayerProfile, profile, self_profile
from .errors import AIAOError
from .mark.key import WatermarkKey
from .mark.record import WatermarkRecord
from .pipeline import WatermarkedStableDiffusionPipeline
from .publishing.push import push
from .scanning.report import ScanReport
from .scanning.scan import scan
from .verification.report import VerificationReport
from .verification.verify import verify


__version__ = "0.1.0.dev0"

__all__ = [
    "AIAOError",
    "EmbedConfig",
    "EmbedReport",
    "LatentData",
    "LayerProfile",
    "ScanReport",
    "VerificationReport",
    "WatermarkKey",
    "WatermarkRecord",
    "WatermarkedStableDiffusionPipeline",
    "embed",
    "push",
    "profile",
    "self_profile",
    "scan",
    "verify",
]
