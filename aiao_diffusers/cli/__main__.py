"""`python -m aiao_diffusers.cli`: the `aiao` command."""

from . import main


# Processes that a run spawns import this module anew.
if __name__ == "__main__":
    main()
