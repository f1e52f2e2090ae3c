"""The robustness benchmark; it imports the library, never the reverse.

    registry.py    names, hyper-parameters, nearest names        attacks/    functions that change a denoiser
    context.py     what an attack or a peer has at hand          peers/      marking methods, ours among them
    progress.py    how long measurements tell where they are     suites/     shipped suites
    suite/         definition (from YAML), runner (resumable) over run, marks, cells and workers, results, tables, curves, quality
    audits/        measurements of the library: cost, FLOPs, memory, nulls, marks, disguises, formats, fuzz, inversion, plans

The command line is `aiao_diffusers/cli/bench/`, one file a verb; an audit returns data, and Markdown of it.

A new attack is a function in any module of `attacks/`, a new peer a dataclass in any module of `peers/`:

    @attack("shuffle", strength="share")
    def shuffle(denoiser, context, *, share: float = 0.1): ...
"""
