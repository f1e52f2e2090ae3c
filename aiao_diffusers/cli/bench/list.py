"""`aiao bench list`."""

from .._options import AsJson
from .._output import out


def list_names(as_json: AsJson = False) -> None:
    """Attacks with their hyper-parameters, and methods."""
    from ...bench import attacks as _attacks  # noqa: F401 (registers them)
    from ...bench import peers as _peers  # noqa: F401 (registers them)
    from ...bench.registry import ATTACKS, METHODS

    attacks = dict(sorted(ATTACKS.items()))
    if as_json:
        named = {
            name: {"summary": attack.summary, "strength": attack.strength, "hyper_parameters": dict(attack.hyper)}
            for name, attack in attacks.items()
        }
        out.json({"attacks": named, "methods": sorted(METHODS)})
        return
    for attack in attacks.values():
        out.text(f"{attack.name}: {attack.summary} {dict(attack.hyper)}")
    out.text(f"methods: {', '.join(sorted(METHODS))}")
