"""A repository that holds a commitment alone, so that the Hub's history dates it before the model is published."""

from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi

from ..errors import AIAOError
from ..mark.key import BOUND_SCHEME
from ..mark.record import COMMITMENT, COMPANIONS
from ..protocol.commitment import Commitment
from .cards import CardFields
from .cards import commitment as card_of
from .push import HTTP_ERRORS, README, explain_error, read_remote_readme


def publish_commitment(
    source: str | Path,
    repo: str,
    *,
    card: CardFields | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
) -> CommitInfo:
    """Publish a commitment's document with its card, and its timestamp and beacon as far as they are there. The bank stays here.

    Args:
        source (`str` or `Path`): the commitment's file.
        repo (`str`): `user/name`; created when it does not exist.
        card (`CardFields`, *optional*): licence and tags.
        private (`bool`, *optional*): of a new repository. A private one dates nothing for others.
        token (`str`, *optional*): default: the one of `hf auth login` or HF_TOKEN.
    Returns:
        `huggingface_hub.CommitInfo`; its address is a dated place (`aiao commit COMMITMENT --place ADDRESS`).
    Raises:
        CommitmentError: no whole commitment. HubError: the request failed; the message says what to do.
    Source: our choice.
    """
    commitment = Commitment.load(source)
    text = card_of(commitment.fields["owner"], commitment.sha256, fields=card, scheme=BOUND_SCHEME)
    api = HfApi(token=token)
    try:
        repo = str(api.create_repo(repo, private=private, exist_ok=True).repo_id)
        info = api.model_info(repo)
        readme = text.joined(read_remote_readme(api, repo, str(info.sha)) or "")
        sent = {README: readme.encode(), COMMITMENT: commitment.document}
        for name, file in COMPANIONS.items():
            content = getattr(commitment.companions, name)
            if content is not None:
                sent[file] = content
        return api.create_commit(
            repo,
            [CommitOperationAdd(name, content) for name, content in sent.items()],
            commit_message="Publish a watermark commitment",
            parent_commit=info.sha,
        )
    except AIAOError:
        raise
    except (*HTTP_ERRORS, RuntimeError, ValueError) as error:
        raise explain_error(error, repo) from error
