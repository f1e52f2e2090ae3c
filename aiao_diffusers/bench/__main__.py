"""`python -m aiao_diffusers.bench run|table|list`; `aiao bench` is the same."""

import argparse
import sys
from pathlib import Path

from ..errors import AIAOError
from .registry import ATTACKS, METHODS
from .suite.curves import curves
from .suite.definition import shipped
from .suite.runner import ASSETS, describe, run_suite, unexpected
from .suite.tables import SECTIONS, load, table, update


def main(words: list[str] | None = None, prog: str | None = None) -> int:
    """Exit code 0; 1 for an error, or when a verdict differs from what the suite expects; 2 for misuse."""
    args = _parser(prog or "python -m aiao_diffusers.bench").parse_args(words)
    try:
        return int(args.run(args))
    except AIAOError as error:
        print(f"error: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    if args.quick == (args.config is not None):
        print("error: name a suite or pass --quick, one of the two.", file=sys.stderr)
        return 2
    config = "quick" if args.quick else args.config

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    options = {"assets": args.assets, "model": args.model, "data": args.data, "clip": args.clip, "jobs": args.jobs}
    bad = unexpected(run_suite(config, args.out, progress=say, **options))
    for row in bad:
        say(f"unexpected: {describe(row)}")
    return 1 if bad else 0


def _table(args: argparse.Namespace) -> int:
    if args.update and not args.curves and (args.results or args.section):
        print("error: --update takes results and sections from the document: leave out the others.", file=sys.stderr)
        return 2
    if args.curves:
        for path in curves(load(args.results, any_version=args.any_version), args.curves):
            print(f"wrote {path}", file=sys.stderr)
    if args.update:
        print(f"wrote {update(args.update, any_version=args.any_version)}", file=sys.stderr)
    elif not args.curves or args.section:
        print(table(args.results, sections=args.section or (), any_version=args.any_version), end="")
    return 0


def _list(args: argparse.Namespace) -> int:
    for attack in ATTACKS.values():
        print(f"{attack.name}: {attack.summary} {dict(attack.hyper)}")
    print(f"methods: {', '.join(METHODS)}")
    return 0


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description=__doc__)
    verbs = parser.add_subparsers(required=True)
    run = verbs.add_parser("run", help="run what is missing of a suite")
    run.add_argument("config", nargs="?", help=f"a YAML file, or one of {', '.join(sorted(shipped()))}")
    run.add_argument("--quick", action="store_true", help="the quick suite")
    run.add_argument("-o", "--out", type=Path, default=Path("runs/bench"))
    run.add_argument("--assets", type=Path, default=ASSETS, help="folder that the suite's paths start from")
    run.add_argument("--model", help="folder or Hub repository, in place of the suite's models")
    run.add_argument("--data", help="folder of pictures, in place of the suite's data")
    run.add_argument("--clip", help="folder or Hub repository, in place of the suite's CLIP model")
    run.add_argument("--jobs", type=int, default=1, help="processes")
    run.set_defaults(run=_run)
    tables = verbs.add_parser("table", help="Markdown and curves from results")
    tables.add_argument("results", nargs="*", type=Path, help="results files or folders")
    tables.add_argument("--section", action="append", help=", ".join(SECTIONS))
    tables.add_argument(
        "--update", type=Path, help="rewrite the generated parts of this Markdown file, from the results that it names"
    )
    tables.add_argument("--curves", type=Path, help="write curves to this folder")
    tables.add_argument("--any-version", action="store_true", help="accept results of another version")
    tables.set_defaults(run=_table)
    verbs.add_parser("list", help="attacks with their hyper-parameters, and methods").set_defaults(run=_list)
    return parser


if __name__ == "__main__":
    sys.exit(main())
