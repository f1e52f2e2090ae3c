"""The robustness benchmark; it imports the library, never the reverse.

    registry.py    names, hyper-parameters, nearest names        attacks/    functions that change a denoiser
    context.py     what an attack or a peer has at hand          peers/      marking methods, ours among them
    suite/         definition (from YAML), runner (cells to rows, resumable), results (JSON lines), tables, curves, quality
    audits/        measurements of the library: cost, memory, nulls, marks, disguises, formats, inversion
    suites/        shipped suites

A new attack is a function in any module of `attacks/`, a new peer a dataclass in any module of `peers/`:

    @attack("shuffle", strength="share")
    def shuffle(denoiser, context, *, share: float = 0.1): ...
"""
