"""The house keeps its plan: no import goes up or round in a circle."""

import ast
from pathlib import Path

import aiao_diffusers


SOURCE = Path(aiao_diffusers.__file__).parent
# Low to high; packages of one floor know nothing of each other.
FLOORS = (
    ("errors",),
    ("deprecation",),
    ("files", "stats"),
    ("denoiser",),
    ("mark", "formats"),
    ("hub",),
    ("verification",),
    ("embedding", "scanning", "publishing"),
    ("pipeline",),
    ("bench",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
ALIASES = {
    "__init__",
    "cards",
    "data",
    "record",
    "hub_cards",
}  # names kept for older code, and templates: they may point anywhere


def modules(source: Path) -> dict[str, Path]:
    """Every module of the package by its dotted name below the root."""
    return {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(source.rglob("*.py"))
    }


def imports(source: Path, path: Path) -> set[str]:
    """The modules of ours that `path` imports, those inside functions too, by their dotted names."""
    parts, found = path.relative_to(source).with_suffix("").parts, set()
    known = modules(source)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *(node.module.split(".") if node.module else [])]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "aiao_diffusers":
            base = (node.module or "").split(".")[1:]
        elif isinstance(node, ast.Import):
            found |= {
                a.name.removeprefix("aiao_diffusers.") for a in node.names if a.name.startswith("aiao_diffusers.")
            }
            continue
        else:
            continue
        for alias in node.names:
            inner = ".".join([*base, alias.name])
            found.add(inner if inner in known else ".".join(base) or "__init__")
    return found


def going_up(source: Path) -> list[str]:
    """Imports that lead to a higher package, or to another one on the same floor."""
    wrong = []
    for name, path in modules(source).items():
        own = name.split(".")[0]
        if own in ALIASES:
            continue
        for target in imports(source, path):
            other = target.split(".")[0]
            if other != own and LEVEL.get(other, len(FLOORS)) >= LEVEL[own]:
                wrong.append(f"{name} imports {target}")
    return wrong


def circles(source: Path) -> list[list[str]]:
    """Modules that import each other in a loop, by Tarjan's strongly connected components."""
    graph = {name: imports(source, path) for name, path in modules(source).items()}
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in graph.get(name, ()):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            group = [stack.pop()]
            while group[-1] != name:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in index:
            visit(name)
    return found


def test_no_import_goes_up():
    assert len(modules(SOURCE)) > 100
    assert going_up(SOURCE) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(SOURCE) == []


def test_an_import_that_goes_up_and_a_circle_are_seen(tmp_path):
    for name, text in {
        "errors.py": "",
        "stats/hits.py": "def f():\n    from ..verification.verify import verify\n",
        "verification/verify.py": "from . import report\n",
        "verification/report.py": "from .verify import verify\nfrom ..errors import AIAOError\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert going_up(tmp_path) == ["stats.hits imports verification.verify"]
    assert circles(tmp_path) == [["verification.report", "verification.verify"]]
