"""Constraints that pin every requirement of setup.cfg to its lower bound.

Usage: python .ci/lowest.py setup.cfg >lowest.txt   (standard library only)

Left out: torch, which .ci/constraints.txt pins, and the tools that tests and style run with.
"""

import configparser
import re
import sys


LEFT_OUT = {"torch"}
TOOLS = {"build", "hypothesis", "mypy", "pytest", "pytest-socket", "pytest-timeout", "pytest-xdist", "ruff"}


def lowest(setup: str) -> list[str]:
    """`name==bound` of each requirement, sorted; a requirement without a lower bound is an error."""
    config = configparser.ConfigParser()
    config.read_string(setup)
    lists = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    found = set()
    for line in {line.strip() for text in lists for line in text.splitlines() if line.strip()}:
        match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", line)
        if not match:
            raise SystemExit(f"setup.cfg: {line!r} has no plain lower bound: write name>=version.")
        if match[1] not in LEFT_OUT | TOOLS:
            found.add(f"{match[1]}=={match[2]}")
    return sorted(found)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        print("\n".join(lowest(file.read())))
