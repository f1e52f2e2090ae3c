"""Kept for code written for 0.1: see `mark.record` and `denoiser.schedule`."""

from .denoiser.schedule import noise_schedule, probe_timesteps
from .mark.record import WatermarkRecord, has_record


__all__ = ["WatermarkRecord", "has_record", "noise_schedule", "probe_timesteps"]
