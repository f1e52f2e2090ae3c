"""Exact p-values. Knows nothing of models: numbers in, numbers out."""
