"""The Hub that publishing asks, which for a test that takes `endpoint` is its own server."""

import pytest
from huggingface_hub import constants

from tests.hub_server import HubServer


@pytest.fixture
def endpoint(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """`push` asks the Hub that the process was started with; here that is the test's server."""
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
