"""A commitment on the Hub: what arrives, what stays here, and a second call that adds the date."""

import hashlib

import pytest
from _tiny import commit_tiny
from huggingface_hub import ModelCard

from aiao_diffusers.errors import CommitmentError, HubError
from aiao_diffusers.publishing.cards import CardFields
from aiao_diffusers.publishing.commitment_repository import publish_commitment
from tests.hub_server import ServerError


REPO = "owner/commitment"


pytestmark = pytest.mark.usefixtures("endpoint")


@pytest.fixture
def path(tmp_path):
    return commit_tiny(None)[1].save_new(tmp_path / "mine.json")


def test_document_and_card_arrive_and_the_bank_does_not(server, path):
    made = publish_commitment(path, REPO, card=CardFields(license="cc0-1.0"), token=server.token)
    assert server.sha(REPO) == made.oid
    assert set(server.files(REPO)) == {".gitattributes", "README.md", "commitment.json"}
    sent = server.read(REPO, "commitment.json")
    assert sent == path.read_bytes()
    text = server.read(REPO, "README.md").decode()
    ModelCard(text).validate()
    assert hashlib.sha256(sent).hexdigest() in text and "aiao-2" in text and "aiao-commitment" in text


def test_a_later_call_adds_date_and_beacon(server, path):
    publish_commitment(path, REPO, token=server.token)
    path.with_suffix(".tsr").write_bytes(b"token")
    publish_commitment(path, REPO, token=server.token)
    assert server.read(REPO, "commitment.tsr") == b"token"


def test_refusals(server, api, path, tmp_path):
    with pytest.raises(CommitmentError):
        publish_commitment(tmp_path / "no.json", REPO, token=server.token)
    assert not api.repo_exists(REPO)
    server.faults.add(ServerError(path="/commit/", method="POST", status=503))
    with pytest.raises(HubError, match="commitment"):
        publish_commitment(path, REPO, token=server.token)
