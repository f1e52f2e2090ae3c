"""A DSSE envelope: bytes, what they are, and one Ed25519 signature under both.

The bytes that were signed are kept as they are. An envelope has one spelling only (canonical JSON, padded standard base64, one
signature), so whatever is changed in it is refused, and two envelopes never say the same.

Source: DSSE v1 (github.com/secure-systems-lab/dsse, protocol.md and envelope.md); one signature and one spelling are our choice.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any

from ..errors import AttestationError, UnsafeFileError
from ..files.strict_json import parse_json
from ..files.text import short
from .signer import SIGNATURE_BYTES, PublicKey, Signer


MAX_PAYLOAD = 4 * 2**20
"""Bytes; a report has some tens of KiB."""
MAX_ENVELOPE = 6 * 2**20
_FIELDS, _SIGNATURE_FIELDS = ("payload", "payloadType", "signatures"), ("keyid", "sig")


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding: the bytes that are signed, so that no payload can pass for one of another type."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, payload_type: str, signer: Signer) -> bytes:
    """An envelope around `payload`.

    Raises:
        AttestationError: the payload is larger than `MAX_PAYLOAD`.
    """
    if len(payload) > MAX_PAYLOAD:
        raise AttestationError(
            f"the statement has {len(payload)} bytes, at most {MAX_PAYLOAD} are signed: report less."
        )
    signature = {"keyid": signer.public.keyid, "sig": _encode(signer.sign(pae(payload_type, payload)))}
    return _written({"payload": _encode(payload), "payloadType": payload_type, "signatures": [signature]})


def unseal(envelope: bytes, payload_type: str, key: PublicKey) -> bytes:
    """The payload of an envelope of this type, once `key`'s signature under it was found to hold.

    Raises:
        AttestationError: too large, no envelope, of another type, not exactly one signature, of another key, or altered.
    """
    document = _read(envelope)
    if document["payloadType"] != payload_type:
        raise AttestationError(f"payloadType is {short(document['payloadType'])}, expected {payload_type!r}.")
    signatures = document["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1:
        count = len(signatures) if isinstance(signatures, list) else short(signatures)
        raise AttestationError(f"signatures: {count}, expected exactly 1.")
    signature = signatures[0]
    if not isinstance(signature, Mapping):
        raise AttestationError(f"the signature is {short(signature)}, expected an object.")
    _require_fields(signature, _SIGNATURE_FIELDS, "the signature")
    if signature["keyid"] != key.keyid:
        raise AttestationError(f"keyid is {short(signature['keyid'])}; the signer's key has {key.keyid}.")
    payload, given = _decode(document["payload"], "payload"), _decode(signature["sig"], "sig")
    if len(given) != SIGNATURE_BYTES or not key.holds(given, pae(payload_type, payload)):
        raise AttestationError(f"the signature does not hold for key {key.keyid}: payload or sig was altered.")
    if _written(document) != envelope:
        raise AttestationError("the envelope is spelled in another way than it was written: it was altered.")
    return payload


def _read(envelope: bytes) -> dict[str, Any]:
    if len(envelope) > MAX_ENVELOPE:
        raise AttestationError(f"the envelope has {len(envelope)} bytes; one has at most {MAX_ENVELOPE}.")
    try:
        document = parse_json(envelope, "the envelope")
    except UnsafeFileError as error:
        raise AttestationError(str(error)) from error
    _require_fields(document, _FIELDS, "the envelope")
    return document


def _written(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _encode(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _decode(text: Any, name: str) -> bytes:
    try:
        content = base64.b64decode(text, validate=True) if isinstance(text, str) else b""
    except (binascii.Error, ValueError):  # the latter of characters outside ASCII
        content = b""
    # Unused bits at the end would let one content be spelled in several ways.
    if not content or _encode(content) != text:
        raise AttestationError(f"{name} is no padded standard base64: {short(text)}.")
    return content


def _require_fields(document: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    for label, listed in (
        ("lacks", [name for name in names if name not in document]),
        ("has the unknown field", [name for name in document if name not in names]),
    ):
        if listed:
            raise AttestationError(f"{what} {label} {short(listed[0])}; its fields are {', '.join(names)}.")
