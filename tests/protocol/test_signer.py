"""A signer's key: written once for its owner alone, and every file that is none is refused by name."""

import stat
import sys

import pytest
from _kind import extra

from aiao_diffusers.errors import ConfigError, KeyFileError, MissingExtraError
from aiao_diffusers.protocol.signer import MAX_KEY_FILE, PublicKey, Signer


extra("cryptography")

from cryptography.hazmat.primitives import serialization  # noqa: E402
from cryptography.hazmat.primitives.asymmetric import ec, ed448  # noqa: E402


# RFC 8032, section 7.1, test 2: seed, public key, message, signature.
SEED, PUBLIC, MESSAGE, SIGNATURE = (
    bytes.fromhex(text)
    for text in (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    )
)
# RFC 8410, sections 10.1 and 10.3: one key pair in PEM.
RFC_PUBLIC = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""
RFC_SECRET = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
"""


def pem(key, password=None):
    lock = serialization.NoEncryption() if password is None else serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, lock).decode()


@pytest.fixture
def secret(tmp_path):
    def write(text, mode=0o600):
        path = tmp_path / "signer.key"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


class TestSignature:
    def test_of_the_standard(self):
        assert Signer(SEED).public.raw == PUBLIC and Signer(SEED).sign(MESSAGE) == SIGNATURE
        assert PublicKey(PUBLIC).holds(SIGNATURE, MESSAGE)

    def test_another_message_key_or_signature(self):
        assert not PublicKey(PUBLIC).holds(SIGNATURE, b"s")
        assert not Signer(bytes(32)).public.holds(SIGNATURE, MESSAGE)
        for place in range(64):
            spoilt = bytearray(SIGNATURE)
            spoilt[place] ^= 1
            assert not PublicKey(PUBLIC).holds(bytes(spoilt), MESSAGE)
        assert not PublicKey(PUBLIC).holds(SIGNATURE[:-1], MESSAGE)

    def test_s_beyond_the_group_order_is_another_spelling_and_refused(self):
        order = 2**252 + 27742317777372353535851937790883648493
        s = int.from_bytes(SIGNATURE[32:], "little") + order
        assert not PublicKey(PUBLIC).holds(SIGNATURE[:32] + s.to_bytes(32, "little"), MESSAGE)


class TestFiles:
    def test_round_trip(self, tmp_path):
        made = Signer.generate()
        public = made.save_new(tmp_path / "new" / "signer.key")
        assert public == tmp_path / "new" / "signer.pub"
        assert Signer.load(tmp_path / "new" / "signer.key") == made and PublicKey.load(public) == made.public
        assert stat.S_IMODE((tmp_path / "new" / "signer.key").stat().st_mode) == 0o600

    def test_never_overwritten(self, tmp_path):
        path = tmp_path / "signer.key"
        Signer.generate().save_new(path)
        before = path.read_bytes(), (tmp_path / "signer.pub").read_bytes()
        with pytest.raises(KeyFileError, match=r"signer.key' exists"):
            Signer.generate().save_new(path)
        path.unlink()
        with pytest.raises(KeyFileError, match=r"signer.pub' exists"):
            Signer.generate().save_new(path)
        assert not path.exists() and (tmp_path / "signer.pub").read_bytes() == before[1]
        with pytest.raises(ConfigError, match="public half"):
            Signer.generate().save_new(tmp_path / "other.pub")

    def test_no_half_of_a_pair_is_left(self, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError("disk full")

        monkeypatch.setattr("aiao_diffusers.protocol.signer.write_bytes", fail)
        with pytest.raises(OSError, match="disk full"):
            Signer.generate().save_new(tmp_path / "signer.key")
        assert list(tmp_path.iterdir()) == []

    def test_pem_of_the_standard(self, secret, tmp_path):
        (tmp_path / "a.pub").write_text(RFC_PUBLIC)
        made = Signer.load(secret(RFC_SECRET))
        assert made.public == PublicKey.load(tmp_path / "a.pub") and made.public.to_pem().decode() == RFC_PUBLIC
        # `openssl pkey -pubin -in a.pub -outform DER | sha256sum`
        assert made.public.keyid == "a1e9156054e04fac899ae9f275132cdc07a5dbc4ea2c2ad3a1ffc6e0d253681f"

    def test_secret_is_never_shown(self):
        assert (
            SEED.hex() not in repr(Signer(SEED))
            and "4ccd" not in repr(Signer(SEED))
            and "seed" not in repr(Signer(SEED))
        )


class TestRefused:
    @pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
    @pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
    def test_readable_by_others(self, secret, mode):
        path = secret(RFC_SECRET, mode)
        with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*chmod 600 {path}"):
            Signer.load(path)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (lambda: "", "no PKCS#8 key"),
            (lambda: RFC_SECRET[:70], "cut or altered"),
            (lambda: RFC_SECRET.replace("MC4C", "MC4D"), "cut or altered"),
            (lambda: RFC_PUBLIC, "public key, which cannot sign"),
            (lambda: '{"format": "aiao-key"}', "watermark key, which does not sign"),
            (lambda: pem(Signer(SEED)._loaded(), b"word"), "encrypted.*openssl pkey"),
            (lambda: pem(ec.generate_private_key(ec.SECP256R1())), "another kind.*Ed25519"),
            (lambda: pem(ed448.Ed448PrivateKey.generate()), "another kind.*Ed25519"),
            (lambda: "x" * (MAX_KEY_FILE + 1), "more than"),
        ],
    )
    def test_no_secret_key(self, secret, text, said):
        with pytest.raises(KeyFileError, match=f"signer.key.*{said}"):
            Signer.load(secret(text()))

    def test_missing_or_a_folder(self, tmp_path):
        with pytest.raises(KeyFileError, match="none.key.*keygen --signer"):
            Signer.load(tmp_path / "none.key")
        with pytest.raises(KeyFileError, match="cannot be read"):
            Signer.load(tmp_path)

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("", "no public key"),
            (RFC_SECRET, "is a secret key: keep it"),
            (RFC_PUBLIC[:50], "cut or altered"),
            ("ssh-ed25519 AAAA", "no public key"),
        ],
    )
    def test_no_public_key(self, tmp_path, text, said):
        (tmp_path / "signer.pub").write_text(text)
        with pytest.raises(KeyFileError, match=said):
            PublicKey.load(tmp_path / "signer.pub")

    def test_public_key_of_another_kind(self, tmp_path):
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        forms = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        (tmp_path / "signer.pub").write_bytes(key.public_bytes(*forms))
        with pytest.raises(KeyFileError, match="another kind"):
            PublicKey.load(tmp_path / "signer.pub")

    @pytest.mark.parametrize("made", [Signer, PublicKey])
    def test_another_length(self, made):
        for raw in (b"", bytes(31), "x" * 32):
            with pytest.raises(KeyFileError, match="32 bytes"):
                made(raw)

    def test_without_the_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
        with pytest.raises(MissingExtraError, match=r"aiao_diffusers\[evidence\]"):
            Signer.generate()
