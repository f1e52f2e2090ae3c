"""What the libraries below raise on files that do not fit."""

import struct

from diffusers.loaders.single_file_utils import SingleFileComponentError
from safetensors import SafetensorError


UPSTREAM_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    SingleFileComponentError,
    TypeError,
    ValueError,
    struct.error,
)
"""What diffusers and torch raise on a config or file that does not fit; Ctrl-C and MemoryError pass through."""
