"""The lineage carrier: constant secret directions in clean activations, which adapters trained on the model inherit."""
