"""Denoisers of diffusers: their sites, inputs, calls and weights. Knows nothing of keys or marks."""
