"""Suites: what a file asks for, its runs, their results and tables."""

# Whoever reads a suite or a result needs the names that these register.
from .. import attacks as _attacks  # noqa: F401
from .. import peers as _peers  # noqa: F401
