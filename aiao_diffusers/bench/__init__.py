"""The robustness benchmark; it imports the library, never the reverse.

    suite.py       what is crossed with what, from YAML          registry.py   names, hyper-parameters, nearest names
    scene.py       what an attack or a peer has at hand          run.py        cells -> rows, resumable, several processes
    attacks/       functions that change a denoiser              results.py    the JSON lines, their lock and versions
    baselines/     marking methods, ours among them              tables.py, curves.py   rows -> Markdown, pictures
    quality.py     what an attack costs                          suites/       shipped suites

A new attack is a function in any module of `attacks/`, a new peer a dataclass in any module of `baselines/`:

    @attack("shuffle", strength="share")
    def shuffle(denoiser, scene, *, share: float = 0.1): ...
"""
