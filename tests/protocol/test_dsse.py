"""An envelope has one spelling, one signature and one type; whatever else comes is refused by name."""

import base64
import json
import random

import pytest
from _kind import FULL, extra

from aiao_diffusers.errors import AttestationError
from aiao_diffusers.protocol.dsse import MAX_ENVELOPE, MAX_PAYLOAD, pae, seal, unseal
from aiao_diffusers.protocol.signer import Signer


extra("cryptography")

SIGNER, OTHER = Signer(bytes(range(32))), Signer(bytes(32))
KIND, PAYLOAD = "http://example.com/HelloWorld", b"hello world"
SEALED = seal(PAYLOAD, KIND, SIGNER)


def changed(**fields):
    return (json.dumps({**json.loads(SEALED), **fields}, sort_keys=True, separators=(",", ":")) + "\n").encode()


def signature(**fields):
    return changed(signatures=[{**json.loads(SEALED)["signatures"][0], **fields}])


def encoded(content):
    return base64.b64encode(content).decode()


class TestSealed:
    def test_what_is_signed_is_the_specification_s(self):
        # From the test vector of DSSE's protocol.md.
        assert pae(KIND, PAYLOAD) == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "

    def test_opens_again(self):
        assert unseal(SEALED, KIND, SIGNER.public) == PAYLOAD
        document = json.loads(SEALED)
        assert base64.b64decode(document["payload"]) == PAYLOAD and document["payloadType"] == KIND
        ((given,),) = [document["signatures"]]
        assert given["keyid"] == SIGNER.public.keyid
        assert SIGNER.public.holds(base64.b64decode(given["sig"]), pae(KIND, PAYLOAD))

    def test_largest(self):
        assert unseal(seal(bytes(MAX_PAYLOAD), KIND, SIGNER), KIND, SIGNER.public) == bytes(MAX_PAYLOAD)
        with pytest.raises(AttestationError, match=f"{MAX_PAYLOAD + 1} bytes"):
            seal(bytes(MAX_PAYLOAD + 1), KIND, SIGNER)


ONE = json.loads(SEALED)["signatures"][0]
BY_OTHER = encoded(OTHER.sign(pae(KIND, PAYLOAD)))
CASES = {
    "payload changed": (changed(payload=encoded(b"hello World")), "signature does not hold"),
    "payload empty": (changed(payload=""), "payload is no padded"),
    "payload no text": (changed(payload=5), "payload is no padded"),
    "payload url-safe": (changed(payload="_-__"), "payload is no padded"),
    "payload unpadded": (changed(payload=encoded(PAYLOAD).rstrip("=")), "payload is no padded"),
    "payload with unused bits": (changed(payload="aGVsbG8gd29ybGR="), "payload is no padded"),
    "payload with a line break": (changed(payload=encoded(PAYLOAD) + "\n"), "payload is no padded"),
    "payload beyond ASCII": (changed(payload="é"), "payload is no padded"),
    "type changed": (changed(payloadType="application/json"), "payloadType is 'application/json'"),
    "type no text": (changed(payloadType=None), "payloadType is None"),
    "no signature": (changed(signatures=[]), "signatures: 0"),
    "two signatures": (changed(signatures=[ONE, ONE]), "signatures: 2"),
    "a second one of another key": (
        changed(signatures=[ONE, {"keyid": OTHER.public.keyid, "sig": BY_OTHER}]),
        "signatures: 2",
    ),
    "signatures no list": (changed(signatures=ONE), "expected exactly 1"),
    "signature no object": (changed(signatures=["x"]), "expected an object"),
    "keyid swapped": (signature(keyid=OTHER.public.keyid), "keyid is"),
    "keyid empty": (signature(keyid=""), "keyid is ''"),
    "signature of another key": (signature(sig=BY_OTHER), "signature does not hold"),
    "signature of another type": (signature(sig=encoded(SIGNER.sign(pae("x", PAYLOAD)))), "does not hold"),
    "signature of the bare payload": (signature(sig=encoded(SIGNER.sign(PAYLOAD))), "does not hold"),
    "signature cut": (signature(sig=encoded(base64.b64decode(ONE["sig"])[:63])), "does not hold"),
    "unknown field": (changed(extra=1), "unknown field 'extra'"),
    "unknown field of a signature": (signature(cert="x"), "unknown field 'cert'"),
    "field missing": (json.dumps({"payload": "", "signatures": []}).encode(), "lacks 'payloadType'"),
    "another spelling": (json.dumps(json.loads(SEALED), indent=1).encode(), "spelled in another way"),
    "bytes behind": (SEALED + b" ", "spelled in another way"),
    "cut": (SEALED[:-20], "not valid JSON"),
    "empty": (b"", "not valid JSON"),
    "duplicate key": (SEALED.replace(b'{"payload"', b'{"payload":"eA==","payload"', 1), "duplicate key 'payload'"),
    "no UTF-8": (b"\xff" + SEALED, "not valid JSON"),
    "a list": (b"[]", "holds a JSON list"),
    "deep": (b'{"payload":' + b"[" * 100_000, "not valid JSON"),
    "huge": (SEALED + b" " * MAX_ENVELOPE, f"at most {MAX_ENVELOPE}"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name):
    envelope, said = CASES[name]
    with pytest.raises(AttestationError, match=said):
        unseal(envelope, KIND, SIGNER.public)


def test_another_signer_s_envelope():
    with pytest.raises(AttestationError, match=f"keyid is '{OTHER.public.keyid}'"):
        unseal(seal(PAYLOAD, KIND, OTHER), KIND, SIGNER.public)


def test_no_changed_byte_is_ever_accepted():
    dice, rounds = random.Random(0), 5000 if FULL else 300
    for _ in range(rounds):
        content = bytearray(SEALED)
        for _ in range(dice.choice([1, 1, 2, 8])):
            place = dice.randrange(len(content))
            act = dice.randrange(4)
            if act == 0:
                content[place] = dice.randrange(256)
            elif act == 1:
                del content[place : place + dice.choice([1, 7, 40])]
            elif act == 2:
                content[place:place] = dice.choice([b" ", b'"', b"}", b"\\u0041", b"\0", bytes([dice.randrange(256)])])
            else:
                other = dice.randrange(len(content))
                content[place], content[other] = content[other], content[place]
            if not content:
                break
        if bytes(content) != SEALED:
            with pytest.raises(AttestationError):
                unseal(bytes(content), KIND, SIGNER.public)
