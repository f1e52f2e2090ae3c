"""The house keeps its plan: no import goes up or round in a circle, each module has its test, nothing grows too large."""

import ast
from pathlib import Path

import pytest

import aiao_diffusers


TESTS = Path(__file__).parent
SOURCE = Path(aiao_diffusers.__file__).parent
# Low to high; packages of one floor know nothing of each other.
FLOORS = (
    ("errors",),
    ("deprecation",),
    ("files", "stats"),
    ("denoiser",),
    ("mark",),
    ("protocol",),
    ("formats",),
    ("hub",),
    ("lineage",),
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


@pytest.mark.slow
def test_no_import_goes_up():
    assert len(modules(SOURCE)) > 100
    assert going_up(SOURCE) == []


@pytest.mark.slow
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


# Modules without a test file of their own, and where they are tested.
NO_NAMESAKE = {
    "cards": "former name of publishing.cards: test_packaging.py",
    "data": "former name of denoiser.inputs and denoiser.encode: test_packaging.py",
    "record": "former name of mark.record: test_packaging.py",
}


def without_test(source: Path, tests: Path) -> list[str]:
    """Modules, packages' own `__init__` and `__main__` aside, whose namesake `tests/<package>/test_<module>.py` is missing."""
    missing = []
    for name, path in modules(source).items():
        *parents, last = name.split(".")
        if path.stem not in ("__init__", "__main__") and name not in NO_NAMESAKE and parents[:1] != ["hub_cards"]:
            if not tests.joinpath(*parents, f"test_{last.removeprefix('_')}.py").is_file():
                missing.append(name)
    return missing


FILE, FUNCTION, ARGUMENTS = 400, 60, 8
# Public functions that go on taking their former keywords.
MANY_ARGUMENTS = {"embedding.embed.embed", "publishing.push.push", "scanning.scan.scan"}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, without decorators and docstring."""
    first, doc = function.body[0], ast.get_docstring(function, clean=False)
    return function.end_lineno - function.lineno + 1 - (first.end_lineno - first.lineno + 1 if doc is not None else 0)  # type: ignore[operator]


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    listed = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return [argument.arg for argument in listed if argument.arg not in ("self", "cls")]


def too_large(source: Path) -> list[str]:
    """Files, functions and argument lists over the limits; the verbs of the command line may have any number of options."""
    found = []
    for name, path in modules(source).items():
        text = path.read_text()
        if (lines := len(text.splitlines())) > FILE:
            found.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                full = f"{name}.{node.name}"
                if (lines := code_lines(node)) > FUNCTION:
                    found.append(f"{full}: {lines} lines of code")
                many = len(arguments(node)) > ARGUMENTS and full not in MANY_ARGUMENTS
                if many and name.split(".")[0] != "cli":
                    found.append(f"{full}: {len(arguments(node))} arguments")
    return found


def test_every_module_has_its_namesake():
    assert without_test(SOURCE, TESTS) == []


def test_nothing_is_too_large():
    assert too_large(SOURCE) == []


def test_a_module_without_test_and_what_is_too_large_are_seen(tmp_path):
    source, tests = tmp_path / "source", tmp_path / "tests"
    body = "\n".join(["    x = 1"] * 60)
    for name, text in {
        "source/errors.py": "",
        "source/stats/hits.py": "",
        "source/stats/tail.py": "x = 1\n" * 401,
        "source/cli/__init__.py": "",
        "source/cli/_output.py": f'def f():\n    """{"a" * 9}\n\n    b\n    """\n{body}\n',
        "source/stats/ranks.py": f"def f():\n    g = 1\n{body}\n",
        "source/stats/sequential.py": "class A:\n    def f(self, a, b, c, d, *, e, f, g, h, i): ...\n    def g(self, a, b, c, d, e, f, g, h): ...\n",
        "source/cli/scan.py": "def scan(a, b, c, d, e, f, g, h, i): ...\n",
        "tests/test_errors.py": "",
        "tests/cli/test_output.py": "",
        "tests/test_hits.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert without_test(source, tests) == ["cli.scan", "stats.hits", "stats.ranks", "stats.sequential", "stats.tail"]
    assert too_large(source) == [
        "cli._output.f: 61 lines of code",
        "stats.ranks.f: 62 lines of code",
        "stats.sequential.f: 9 arguments",
        "stats.tail: 401 lines",
    ]
