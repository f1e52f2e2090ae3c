"""Where a command looks for the shipped models."""

import pytest
from _shipped import ASSETS

from aiao_diffusers.cli._assets import need_assets
from aiao_diffusers.errors import SuspectError


def test_the_clone_holds_them_and_an_empty_folder_does_not(tmp_path):
    need_assets(ASSETS)
    with pytest.raises(SuspectError, match="--assets"):
        need_assets(tmp_path)
