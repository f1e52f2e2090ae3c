"""All descendants of a model on the Hub, read one after another on one resident denoiser."""
