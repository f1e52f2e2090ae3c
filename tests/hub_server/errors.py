"""What the server refuses, with the status, `X-Error-Code` and wording that `huggingface_hub` tells apart."""


class HubError(Exception):
    """An answer other than success: status, message, optional `X-Error-Code`, extra headers and JSON fields."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: dict[str, str] | None = None,
        fields: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = headers or {}
        self.fields = fields or {}


def repo_not_found(*, signed_in: bool) -> HubError:
    """A missing repo and a private one look the same; without a token both are 401, as the Hub hides which exist."""
    if signed_in:
        return HubError(404, "Repository not found", "RepoNotFound")
    return HubError(401, "Invalid username or password.", "RepoNotFound")


def gated(repo_id: str, *, signed_in: bool) -> HubError:
    if signed_in:
        message = f"Access to model {repo_id} is restricted and you are not in the authorized list."
        return HubError(403, message, "GatedRepo")
    message = f"Access to model {repo_id} is restricted. You must have access to it and be authenticated to access it."
    return HubError(401, message, "GatedRepo")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


def entry_not_found(path: str, commit: str) -> HubError:
    """The commit goes along: the client caches that the file is absent from it."""
    return HubError(404, f"Entry not found: {path}", "EntryNotFound", headers={"X-Repo-Commit": commit})


def bad_token() -> HubError:
    return HubError(401, "Invalid credentials in Authorization header")


def sign_in_first() -> HubError:
    return HubError(401, "Invalid username or password.")


def forbidden(message: str) -> HubError:
    return HubError(403, message)


def bad_request(message: str) -> HubError:
    return HubError(400, message)
