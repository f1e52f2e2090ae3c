"""Attacks on a marked denoiser, each a function that changes it."""
