"""Trusted timestamps (RFC 3161): an authority's signature under a document's hash and the time.

A token proves that the document existed at its time, for as long as nobody else gets hold of the authority's key. Neither the
authority's identity nor revocation is looked up anywhere: who checks a token names the root certificates that he trusts.
"""

import contextlib
import re
import secrets
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from ..errors import AIAOError, ConfigError, MissingExtraError, TimestampError
from ..files.text import short
from .web import request_bytes


if TYPE_CHECKING:
    from cryptography.x509 import Certificate

MAX_TOKEN = 2**16
"""Bytes; real tokens have 1 to 10 KiB, with the certificates."""
CLOCK_SKEW = timedelta(minutes=5)
"""How far a token's time may lie in the future of our clock. Our choice."""
SHA256_OID = "2.16.840.1.101.3.4.2.1"
# DER of `SEQUENCE {OID sha256, NULL}` and of the head of a 32-byte OCTET STRING.
_SHA256_IMPRINT = bytes.fromhex("3031300d060960864801650304020105000420")
_STATUS = ("granted", "granted with changes", "rejection", "waiting", "revocation warning", "revocation notification")


@dataclass(frozen=True)
class Timestamp:
    """What a checked token says.

    Args:
        time (`datetime`): UTC; the document existed then.
        authority (`str`): subject of the signer's certificate, RFC 4514.
        accuracy (`timedelta`, *optional*): by which the authority says that the time may be off; None where it does not say.
        serial (`int`): of the token, unique with this authority.
    Source: RFC 3161, section 2.4.2.
    """

    time: datetime
    authority: str
    accuracy: timedelta | None
    serial: int


def request_timestamp(digest: bytes, url: str, timeout: float = 30.0) -> bytes:
    """A token for `digest` from the authority at `url`, checked to answer this very request.

    Whether the authority is trusted is for `check_timestamp` to say. The token is one that `openssl ts -verify -digest` reads.

    Args:
        digest (`bytes`): SHA-256 of the document, 32 bytes.
        url (`str`): http or https address of a timestamp authority.
        timeout (`float`): seconds for the whole answer; default 30.
    Returns:
        `bytes`: DER of the TimeStampResp, as it came.
    Raises:
        TimestampError: no answer, a refusal, or a token for another request. ConfigError: digest, address or timeout is unusable.
        MissingExtraError: rfc3161-client is not installed.
    Source: RFC 3161, sections 2.4.1 and 3.4.
    """
    _require_digest(digest)
    _library()  # before any request
    nonce = secrets.randbits(63) | 1 << 62  # eight bytes in DER whatever the draw
    headers = {"Content-Type": "application/timestamp-query", "Accept": "application/timestamp-reply"}
    body = _request(digest, nonce)
    token = request_bytes(url, headers=headers, timeout=timeout, limit=MAX_TOKEN, error=TimestampError, body=body)
    try:
        response = _decode(token)
        _check_granted(response)
        info = _info(response)
        _check_imprint(info, digest)
    except TimestampError as error:
        raise TimestampError(f"{short(url)} gave no usable token: {error}") from error
    if info.nonce != nonce:
        raise TimestampError(
            f"{short(url)} answered another request (its nonce differs): request again, or elsewhere."
        )
    return token


def check_timestamp(
    token: bytes, digest: bytes, authorities: Sequence[bytes], *, now: datetime | None = None
) -> Timestamp:
    """Check offline that a trusted authority dated this document.

    In this order: size and form; status granted; SHA-256 of this document; one signer, whose certificate is in the token,
    is for time-stamping alone and valid at the token's time; the signature and the chain up to one of `authorities` at that
    time; not in the future. A certificate that has expired since is fine.

    Args:
        token (`bytes`): DER of a TimeStampResp.
        digest (`bytes`): SHA-256 of the document, 32 bytes.
        authorities (`Sequence[bytes]`): PEM of the root certificates that are trusted, one or several in each; at least one.
        now (`datetime`, *optional*): with a time zone; default: this machine's clock. `CLOCK_SKEW` ahead of it is let pass.
    Raises:
        TimestampError: any of these does not hold; the message says which. ConfigError: digest, authorities or `now` unusable.
        MissingExtraError: rfc3161-client is not installed.
    Source: RFC 3161, section 2.2; the chain and the signature by rfc3161-client.
    """
    _require_digest(digest)
    if now is not None and (not isinstance(now, datetime) or now.utcoffset() is None):
        raise ConfigError(f"now={short(now)} has no time zone: give one, as datetime(..., tzinfo=UTC).")
    library = _library()
    roots = _roots(authorities)
    response = _decode(token)
    _check_granted(response)
    info = _info(response)
    _check_imprint(info, digest)
    time = _time(info)
    signer = _signer(response)
    _check_signer(signer, time)
    verifier = library.VerifierBuilder(roots=roots).build()
    with _malformed("its signature"):
        try:
            verifier.verify(response, digest)
        except library.VerificationError as error:
            raise _refusal(str(error), signer, time) from error
    ahead = time - (datetime.now(UTC) if now is None else now)
    if ahead > CLOCK_SKEW:
        raise TimestampError(
            f"the token's time {_stamp(time)} lies {ahead} in the future (allowed: {CLOCK_SKEW}): set this machine's clock, or "
            f"ask another authority."
        )
    return Timestamp(time, signer.subject.rfc4514_string(), _accuracy(info), info.serial_number)


def _library() -> Any:
    try:
        import rfc3161_client
    except ImportError as error:
        raise MissingExtraError(
            "timestamps need rfc3161-client and cryptography, which are not installed: run "
            "`pip install 'aiao_diffusers[evidence]'`."
        ) from error
    return rfc3161_client


@contextlib.contextmanager
def _malformed(what: str) -> Iterator[None]:
    """Any fault that the parsers of others find in bytes of a stranger becomes one typed error, and prints no warning.

    cryptography raises classes of its own right under Exception (a certificate of an unknown version, for one), so no list of
    classes would be whole. A panic of the Rust below is a BaseException, the one case where that class is caught.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (AIAOError, MemoryError):
        raise
    except Exception as error:
        raise TimestampError(
            f"the token is malformed ({what}: {short(str(error), 200)}): request a new one."
        ) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TimestampError(f"the token is malformed ({what} cannot be read): request a new one.") from error


def _require_digest(digest: bytes) -> None:
    if type(digest) is not bytes or len(digest) != 32:
        raise ConfigError(
            f"digest {short(digest)} is not 32 bytes: give the document's SHA-256 (hashlib.sha256(...).digest())."
        )


def _request(digest: bytes, nonce: int) -> bytes:
    """DER of a TimeStampReq: version 1, SHA-256 imprint, nonce, certificates asked for.

    Written out here because rfc3161-client hashes what it is given, and would date the hash of the hash.
    """
    content = b"\x02\x01\x01" + _SHA256_IMPRINT + digest + b"\x02\x08" + nonce.to_bytes(8, "big") + b"\x01\x01\xff"
    return b"\x30" + bytes([len(content)]) + content


def _decode(token: bytes) -> Any:
    if type(token) is not bytes or not 0 < len(token) <= MAX_TOKEN:
        size = f"{len(token)} bytes" if isinstance(token, bytes) else short(token)
        raise TimestampError(
            f"a token is 1 to {MAX_TOKEN} bytes, not {size}: pass the file that the authority answered with."
        )
    with _malformed("no TimeStampResp in DER"):
        return _library().decode_timestamp_response(token)


def _check_granted(response: Any) -> None:
    with _malformed("its status"):
        status, said = response.status, response.status_string
    if status != 0:
        name = _STATUS[status] if 0 <= status < len(_STATUS) else "unknown"
        words = f" ({short('; '.join(said))})" if said else ""
        raise TimestampError(
            f"the authority did not grant the request: status {status}, {name}{words}. Request a new token."
        )


def _info(response: Any) -> Any:
    with _malformed("its TSTInfo"):
        return response.tst_info


def _check_imprint(info: Any, digest: bytes) -> None:
    with _malformed("its message imprint"):
        algorithm, dated = info.message_imprint.hash_algorithm.dotted_string, info.message_imprint.message
    if algorithm != SHA256_OID:
        raise TimestampError(
            f"the token dates a hash of algorithm {short(algorithm)}; here it is SHA-256 ({SHA256_OID})."
        )
    if dated != digest:
        raise TimestampError(
            f"the token dates another document: SHA-256 {short(dated.hex(), 80)}, expected {digest.hex()}. Pass the token of this "
            f"document; a document that was changed needs a new one."
        )


def _time(info: Any) -> datetime:
    with _malformed("its time"):
        time = info.gen_time
        return time.replace(tzinfo=UTC) if time.utcoffset() is None else time.astimezone(UTC)


def _accuracy(info: Any) -> timedelta | None:
    with _malformed("its accuracy"):
        accuracy = info.accuracy
        if accuracy is None:
            return None
        return timedelta(
            seconds=accuracy.seconds or 0, milliseconds=accuracy.millis or 0, microseconds=accuracy.micros or 0
        )


def _signer(response: Any) -> "Certificate":
    """The one certificate that issuer and serial number of the one signature name.

    Two certificates of these names would let a stranger show one for its purpose and sign with the other.
    """
    from cryptography import x509

    with _malformed("its signer"):
        signatures = list(response.signed_data.signer_infos)
        certificates = [x509.load_der_x509_certificate(der) for der in response.signed_data.certificates]
        names = [(signature.issuer, signature.serial_number) for signature in signatures]
        found = [one for one in certificates if (one.issuer, one.serial_number) in names]
    if len(signatures) != 1:
        raise TimestampError(f"the token has {len(signatures)} signatures, expected 1: request a new one.")
    if len(found) != 1:
        raise TimestampError(
            f"the token holds {len(found)} certificates of its signer, expected 1: request a new one with `request_timestamp`, "
            f"which asks for the certificate."
        )
    return found[0]


def _check_signer(signer: "Certificate", time: datetime) -> None:
    """The signer's certificate serves time-stamping and nothing else, and was valid at `time`."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    with _malformed("its signer's certificate"):
        name = short(signer.subject.rfc4514_string())
        first, last = signer.not_valid_before_utc, signer.not_valid_after_utc
        try:
            usage = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
            fits = usage.critical and list(usage.value) == [ExtendedKeyUsageOID.TIME_STAMPING]
        except (x509.ExtensionNotFound, x509.DuplicateExtension):
            fits = False
    if not fits:
        raise TimestampError(
            f"the signer {name} has no certificate for time-stamping (a critical extended key usage with id-kp-timeStamping "
            f"alone): ask a timestamp authority."
        )
    if not first <= time <= last:
        raise TimestampError(
            f"the certificate of {name} is valid from {_stamp(first)} to {_stamp(last)}, and the token's time is {_stamp(time)}: "
            f"{'it had expired' if time > last else 'it was not valid yet'}. Ask an authority with a valid certificate."
        )


def _roots(authorities: Sequence[bytes]) -> "list[Certificate]":
    from cryptography import x509

    if not isinstance(authorities, list | tuple) or not authorities:  # one PEM by itself is a sequence too, of numbers
        raise ConfigError(
            "authorities is empty or no list: pass the PEM root certificates that you trust, as [root_pem]."
        )
    roots: list[Certificate] = []
    for number, pem in enumerate(authorities):
        try:
            loaded = x509.load_pem_x509_certificates(pem)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"authorities[{number}] is no PEM certificate: {short(str(error), 200)}.") from error
        roots += [root for root in loaded if root not in roots]
    return roots


def _refusal(reason: str, signer: "Certificate", time: datetime) -> TimestampError:
    """What the library found wrong with chain or signature, with the remedy; OpenSSL's own words name a fault of the chain."""
    subject, issuer = short(signer.subject.rfc4514_string()), short(signer.issuer.rfc4514_string())
    chain = re.search(r'Verify error: ([^"]+)', reason)
    if chain is None:
        return TimestampError(
            f"the token of {subject} was altered, its signature does not hold ({short(reason, 90)}): pass the token as it came."
        )
    if "expired" in chain[1] or "not yet valid" in chain[1]:
        return TimestampError(
            f"a certificate above {subject} was not valid at the token's time {_stamp(time)} ({chain[1]}): ask another authority."
        )
    return TimestampError(
        f"the authority {subject}, issued by {issuer}, is not trusted here ({chain[1]}). If you trust it, pass its root "
        f"certificate (PEM) in `authorities`."
    )


def _stamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")
