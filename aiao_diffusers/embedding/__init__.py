"""Marking a denoiser: what is trained, how long, and at what price."""
