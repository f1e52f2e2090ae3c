"""What somebody could do to an evidence folder, each with what the refusal must say."""

import json
import shutil

from _evidence import OTHER, SIGNER, authority, bound_record
from _shipped import ASSETS

from aiao_diffusers.protocol.attestation import PAYLOAD_TYPE
from aiao_diffusers.protocol.beacon import by_hand
from aiao_diffusers.protocol.dsse import seal, unseal


STATEMENT = "statement.dsse.json"


def edit(name, old, new):
    def act(folder):
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new, 1))

    return act


def put(name, content):
    return lambda folder: (folder / name).write_bytes(content() if callable(content) else content)


def flip(name, place):
    def act(folder):
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return act


def cut(name, most):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:most])


def remove(name):
    return lambda folder: (folder / name).unlink()


def envelope(change):
    """The envelope with some field changed, its signature as it was."""

    def act(folder):
        document = json.loads((folder / STATEMENT).read_bytes())
        change(document)
        (folder / STATEMENT).write_bytes((json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n").encode())

    return act


def resign(change, by=SIGNER):
    """The statement changed and signed anew: what the signer himself, or somebody who signs as another, can do."""

    def act(folder):
        document = json.loads(unseal((folder / STATEMENT).read_bytes(), PAYLOAD_TYPE, SIGNER.public))
        change(document)
        payload = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        (folder / STATEMENT).write_bytes(seal(payload, PAYLOAD_TYPE, by))

    return act


def linked(name, inner):
    """A file moved out of the folder, and a link in its place."""

    def act(folder):
        (folder / name).rename(folder.parent / inner)
        (folder / name).symlink_to(folder.parent / inner)

    return act


def link_folder(folder):
    (folder / "aiao").rename(folder.parent / "moved")
    (folder / "aiao").symlink_to(folder.parent / "moved")


def huge(name):
    def act(folder):
        with (folder / name).open("r+b") as file:
            file.truncate(2**30)

    return act


def swap(name, other):
    """Two files of the folder in each other's place."""

    def act(folder):
        one, two = (folder / name).read_bytes(), (folder / other).read_bytes()
        (folder / name).write_bytes(two)
        (folder / other).write_bytes(one)

    return act


def payload_of_other(document):
    document["payload"] = json.loads(seal(b"{}", PAYLOAD_TYPE, SIGNER))["payload"]


def both(*acts):
    def act(folder):
        for one in acts:
            one(folder)

    return act


def another_record(folder):
    shutil.rmtree(folder / "aiao")
    shutil.copytree(ASSETS / "marked" / "aiao", folder / "aiao")


def later_token():
    return authority("Another").token(bytes.fromhex(bound_record().commitment))


def chosen_beacon():
    return json.dumps(by_hand("I chose this").to_dict()).encode()


def state_another_digest(document):
    document["predicate"]["files"]["report.json"] = "0" * 64


TAMPERING = {
    # the envelope
    "payload changed": (envelope(payload_of_other), "statement.dsse.json.*signature does not hold"),
    "a bit of the payload": (flip(STATEMENT, 200), STATEMENT),
    "payloadType changed": (envelope(lambda d: d.update(payloadType="text/plain")), "payloadType is 'text/plain'"),
    "two signatures": (
        envelope(lambda d: d["signatures"].append(d["signatures"][0])),
        "signatures: 2, expected exactly 1",
    ),
    "no signature": (envelope(lambda d: d["signatures"].clear()), "signatures: 0"),
    "signature of another key": (resign(lambda d: None, OTHER), f"keyid is '{OTHER.public.keyid}'"),
    "keyid swapped": (envelope(lambda d: d["signatures"][0].update(keyid=OTHER.public.keyid)), "keyid is"),
    "unknown field": (envelope(lambda d: d.update(trust=True)), "unknown field 'trust'"),
    "truncated JSON": (cut(STATEMENT, 900), "statement.dsse.json.*not valid JSON"),
    "empty envelope": (put(STATEMENT, b""), "statement.dsse.json.*not valid JSON"),
    "duplicate keys": (edit(STATEMENT, b'{"payload"', b'{"payload":"e30=","payload"'), "duplicate key 'payload'"),
    "spelled anew": (put(STATEMENT, lambda: b"{ }"), "lacks 'payload'"),
    "huge statement": (huge(STATEMENT), f"statement.dsse.json has {2**30} bytes"),
    # the signer
    "signer.pub swapped": (put("signer.pub", OTHER.public.to_pem()), f"keyid is '{SIGNER.public.keyid}'"),
    "signer.pub altered": (flip("signer.pub", 60), "signer.pub|keyid"),
    "signer.pub cut": (cut("signer.pub", 60), "signer.pub.*cut or altered"),
    "signer.pub another spelling": (put("signer.pub", SIGNER.public.to_pem() + b"\n"), "signer.pub has SHA-256"),
    "signer.pub missing": (remove("signer.pub"), "lacks signer.pub"),
    # the report
    "verdict edited in report.json": (
        edit("report.json", b'"verdict": "verified"', b'"verdict": "not_verified"'),
        "report.json has SHA-256",
    ),
    "verdict edited in report.md": (edit("report.md", b"# verified", b"# not_verified"), "report.md has SHA-256"),
    "p edited": (edit("report.json", b'"log10_p": -9.0', b'"log10_p": -99.0'), "report.json has SHA-256"),
    "report.json missing": (remove("report.json"), "lacks report.json"),
    "report and text in each other's place": (swap("report.json", "report.md"), "report.json has SHA-256"),
    # the record
    "record replaced": (another_record, "aiao/commitment"),
    "record edited": (edit("aiao/watermark.json", b'"kappa": ', b'"kappa": 1'), "aiao/watermark.json has SHA-256"),
    "bank replaced": (
        put("aiao/probe.safetensors", lambda: (ASSETS / "marked/aiao/probe.safetensors").read_bytes()),
        "aiao/probe.safetensors has SHA-256",
    ),
    "a bit of the bank": (flip("aiao/probe.safetensors", -1), "aiao/probe.safetensors has SHA-256"),
    "bank huge": (huge("aiao/probe.safetensors"), "aiao/probe.safetensors has 1073741824 bytes"),
    "commitment replaced": (
        edit("aiao/commitment.json", b'"aiao":2', b'"aiao":3'),
        "aiao/commitment.json has SHA-256",
    ),
    "commitment missing": (
        remove("aiao/commitment.json"),
        "'aiao/commitment.json': the statement names it, and it is missing",
    ),
    "timestamp swapped": (put("aiao/commitment.tsr", later_token), "aiao/commitment.tsr has SHA-256"),
    "timestamp missing": (remove("aiao/commitment.tsr"), "'aiao/commitment.tsr': the statement names it"),
    "beacon file swapped": (
        put("aiao/commitment.beacon.json", chosen_beacon),
        "aiao/commitment.beacon.json has SHA-256",
    ),
    "places edited": (put("aiao/commitment.places.json", b'["there"]'), "aiao/commitment.places.json has SHA-256"),
    # the folder
    "extra file": (put("notes.txt", b"x"), "'notes.txt' is no file of an evidence folder"),
    "extra hidden file": (put(".notes", b"x"), "'.notes' is no file"),
    "extra file of the record": (put("aiao/leaf.json", b"x"), "'aiao/leaf.json' is no file"),
    "extra folder": (lambda folder: (folder / "more").mkdir(), "'more' is no file"),
    "statement missing": (remove(STATEMENT), f"lacks {STATEMENT}"),
    "record missing": (lambda folder: shutil.rmtree(folder / "aiao"), "lacks aiao/"),
    "folder as file": (
        both(remove("report.md"), lambda folder: (folder / "report.md").mkdir()),
        "'report.md' is no file",
    ),
    "a link": (linked("report.json", "moved.json"), "'report.json' is a link"),
    "a link to the record": (link_folder, "'aiao' is a link"),
    "a dead link": (
        both(remove("report.md"), lambda folder: (folder / "report.md").symlink_to("gone")),
        "'report.md' is a link",
    ),
    # what only a signer can do
    "version field changed": (
        resign(lambda d: d.update(predicateType="urn:aiao-diffusers:verdict:v2")),
        "predicateType is",
    ),
    "statement type changed": (resign(lambda d: d.update(_type="https://in-toto.io/Statement/v2")), "_type is"),
    "another digest stated": (resign(state_another_digest), f"report.json has SHA-256 .*says {'0' * 64}"),
    "a file stated that is not there": (
        resign(lambda d: d["predicate"]["files"].update({"aiao/x": "0" * 64})),
        "aiao/x.*missing",
    ),
    "a way out stated": (
        resign(lambda d: d["predicate"]["files"].update({"../x": "0" * 64})),
        "'../x': the statement names it",
    ),
    "a file not stated": (
        resign(lambda d: d["predicate"]["files"].pop("report.md")),
        "'report.md': the statement does not name it",
    ),
    "another verdict stated": (
        resign(lambda d: d["predicate"]["report"].update(verdict="not_verified", log10_p=-1.0)),
        "report.json is not the report",
    ),
    "a verdict that p contradicts": (
        resign(lambda d: d["predicate"]["report"].update(log10_p=-1.0)),
        "contradicts log10_p",
    ),
    "another record stated": (
        resign(lambda d: d["predicate"]["record"].update(sha256="0" * 64)),
        "sha256 of the record",
    ),
    "another commitment stated": (
        resign(lambda d: d["predicate"]["record"].update(commitment="0" * 64)),
        "commitment of the record",
    ),
    "another signer stated": (
        resign(lambda d: d["predicate"].update(signer=OTHER.public.keyid)),
        "signer in the statement",
    ),
    "no subject": (resign(lambda d: d.update(subject=[])), "subject names 1 to"),
}
