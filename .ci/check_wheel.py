"""Compare a wheel with the source tree: a package missing from setup.cfg leaves the wheel without a word.

Usage: python .ci/check_wheel.py WHEEL   (from the root of the source tree; standard library only)
"""

import configparser
import sys
import zipfile
from pathlib import Path


SOURCES = {"aiao_diffusers": "aiao_diffusers", "hub_cards": "aiao_diffusers/hub_cards"}  # folder here: folder in wheel
SUFFIXES = {".py", ".typed", ".md", ".jinja", ".yaml"}
ENTRY_POINTS = {"aiao": "aiao_diffusers.cli:main", "hf-aiao": "aiao_diffusers.cli:main"}


def faults(wheel: Path, root: Path) -> list[str]:
    """What is wrong with the wheel, one line a fault; an empty list means that it holds the tree exactly."""
    expected = {
        f"{target}/{path.relative_to(root / folder).as_posix()}"
        for folder, target in SOURCES.items()
        for path in (root / folder).rglob("*")
        if path.suffix in SUFFIXES
    }
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        declared = configparser.ConfigParser()
        for name in names:
            if name.endswith(".dist-info/entry_points.txt"):
                declared.read_string(archive.read(name).decode())
    packed = {name for name in names if ".dist-info/" not in name}
    found = [
        f"in the tree, not in the wheel (see packages and package_data in setup.cfg): {name}"
        for name in sorted(expected - packed)
    ]
    found += [f"in the wheel, not in the tree: {name}" for name in sorted(packed - expected)]
    for kind in ("md", "html"):
        if not any(name.endswith(f".{kind}.jinja") for name in packed):
            found.append(f"the wheel holds no .{kind}.jinja template")
    if not any(name.endswith("licenses/LICENSE") or name.endswith(".dist-info/LICENSE") for name in names):
        found.append("the wheel holds no LICENSE")
    scripts = dict(declared["console_scripts"]) if declared.has_section("console_scripts") else {}
    if scripts != ENTRY_POINTS:
        found.append(f"console scripts are {scripts}, not {ENTRY_POINTS}")
    return found


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    wheel = Path(sys.argv[1])
    found = faults(wheel, Path.cwd())
    for line in found:
        print(f"{wheel.name}: {line}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
