"""Files that may be hostile or half-written: read strictly, written whole or not at all. Knows nothing of models."""
