"""Traceable diffusion models: a secret watermark in the denoiser, provable from a suspect's weights."""

from .data import LatentData
from .embed import EmbedConfig, EmbedReport, embed
from .key import WatermarkKey
from .record import WatermarkRecord


__version__ = "0.1.0"
