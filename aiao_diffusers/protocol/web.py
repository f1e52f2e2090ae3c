"""One bounded request to a server that nobody has to trust: a timestamp authority, or a relay of public randomness."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Mapping

from ..errors import ConfigError, ProtocolError
from ..files.text import short


USER_AGENT = "aiao_diffusers"


def request_bytes(
    url: str,
    *,
    headers: Mapping[str, str],
    timeout: float,
    limit: int,
    error: type[ProtocolError],
    body: bytes | None = None,
) -> bytes:
    """What `url` answers; the caller checks it, for the way there may be plain HTTP.

    Args:
        url (`str`): an http or https address.
        headers (`Mapping[str, str]`): of the request.
        timeout (`float`): seconds for the whole answer, above 0.
        limit (`int`): most bytes that the answer may have.
        error (`type[ProtocolError]`): the class to raise where nothing usable comes back.
        body (`bytes`, *optional*): sent by POST; default: a GET.
    Raises:
        ConfigError: no http address, or no time. ProtocolError: of class `error`; no answer, a refusal, or too long an answer.
    Source: our choice.
    """
    if not url.lower().startswith(("http://", "https://")):
        raise ConfigError(f"{short(url)} is no http or https address.")
    if not 0 < timeout < 3600:
        raise ConfigError(f"timeout {timeout} is not between 0 and 3600 seconds.")
    deadline, answer = time.monotonic() + timeout, bytearray()
    try:
        request = urllib.request.Request(url, data=body, headers={"User-Agent": USER_AGENT, **headers})
        with urllib.request.urlopen(request, timeout=timeout) as response:
            # By pieces: a server that sends a byte at a time would never meet the timeout of a single read.
            while piece := response.read1(2**14):
                answer += piece
                if len(answer) > limit:
                    raise error(f"{short(url)} answers with more than {limit} bytes: it is no server of this kind.")
                if time.monotonic() > deadline:
                    raise error(f"{short(url)} did not finish within {timeout:g} seconds; try again later.")
    except urllib.error.HTTPError as refused:
        refused.close()
        raise error(f"{short(url)} refused with HTTP status {refused.code}: check the address.") from refused
    except (OSError, http.client.HTTPException, ValueError) as failed:
        if isinstance(failed, ProtocolError):
            raise
        raise error(
            f"{short(url)} did not answer ({short(str(failed), 200)}); check it, or try again later."
        ) from failed
    return bytes(answer)
