"""A timestamp authority on this machine: root and signing certificates, and tokens with any fault.

Made with cryptography and asn1crypto; the library under test reads tokens with another parser (rfc3161-client).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from asn1crypto import algos, cms, core, tsp
from asn1crypto import x509 as asn1_x509
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


TIME = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
YEAR = timedelta(days=365)
SHA256 = algos.DigestAlgorithm({"algorithm": "sha256"})


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


@dataclass
class Authority:
    """Args:
    name: of root and signer. usages: of the signer's certificate. critical: whether they must be understood.
    valid, root_valid: from and to, of the signer's and the root's certificate.
    between: a key of a certificate between root and signer, which the tokens carry; default: the root issues directly.
    """

    name: str = "Test Authority"
    usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.TIME_STAMPING,)
    critical: bool = True
    valid: tuple[datetime, datetime] = (TIME - YEAR, TIME + YEAR)
    root_valid: tuple[datetime, datetime] = (TIME - 9 * YEAR, TIME + 9 * YEAR)
    root_key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    between: ec.EllipticCurvePrivateKey | None = None

    @cached_property
    def root(self) -> x509.Certificate:
        return self._issuer(f"{self.name} Root", self.root_key, self.root_valid)

    def _issuer(
        self, name: str, key: ec.EllipticCurvePrivateKey, valid: tuple[datetime, datetime]
    ) -> x509.Certificate:
        return (
            self._draft(named(name), named(f"{self.name} Root"), key, valid, 1 if key is self.root_key else 2)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(self.root_key, hashes.SHA256())
        )

    @cached_property
    def intermediate(self) -> x509.Certificate | None:
        return None if self.between is None else self._issuer(f"{self.name} Issuer", self.between, self.root_valid)

    @cached_property
    def root_pem(self) -> bytes:
        return self.root.public_bytes(Encoding.PEM)

    @cached_property
    def certificate(self) -> x509.Certificate:
        return self.issue(self.between or self.root_key)

    def issue(self, by: ec.EllipticCurvePrivateKey, **changes: Any) -> x509.Certificate:
        """A certificate in the signer's name: `by` other than the root's key makes one that no root stands behind."""
        usages, critical = changes.get("usages", self.usages), changes.get("critical", self.critical)
        draft = self._draft(
            named(self.name),
            (self.intermediate or self.root).subject,
            self.key,
            self.valid,
            changes.get("serial", 1000),
        )
        draft = draft.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        draft = draft.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((self.between or self.root_key).public_key()),
            critical=False,
        )
        if usages:
            draft = draft.add_extension(x509.ExtendedKeyUsage(usages), critical=critical)
        return draft.sign(by, hashes.SHA256())

    @staticmethod
    def _draft(
        subject: x509.Name,
        issuer: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        valid: tuple[datetime, datetime],
        serial: int = 1,
    ) -> x509.CertificateBuilder:
        draft = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
        return draft.serial_number(serial).not_valid_before(valid[0]).not_valid_after(valid[1])

    def token(
        self,
        digest: bytes,
        time: datetime = TIME,
        *,
        nonce: int | None = None,
        status: int = 0,
        algorithm: str = "sha256",
        certificates: Sequence[x509.Certificate] | None = None,
        signatures: int = 1,
        accuracy: dict[str, int] | None = None,
    ) -> bytes:
        """DER of a TimeStampResp, with whatever fault is asked for."""
        if status > 1:  # by hand: asn1crypto takes the token for mandatory, which RFC 3161 does not
            content = tsp.PKIStatusInfo({"status": status, "status_string": ["no"]}).dump()
            return b"\x30" + bytes([len(content)]) + content
        fields = {
            "version": "v1",
            "policy": "1.2.3.4",
            "message_imprint": {"hash_algorithm": {"algorithm": algorithm}, "hashed_message": digest},
            "serial_number": 77,
            "gen_time": time,
            **({} if nonce is None else {"nonce": nonce}),
            **({} if accuracy is None else {"accuracy": accuracy}),
        }
        content = tsp.TSTInfo(fields)
        listed = (
            [one for one in (self.certificate, self.intermediate) if one] if certificates is None else certificates
        )
        signed = {
            "version": "v3",
            "digest_algorithms": [SHA256],
            "encap_content_info": {
                "content_type": "tst_info",
                "content": core.ParsableOctetString(content.dump()),
            },
            "certificates": [asn1_x509.Certificate.load(one.public_bytes(Encoding.DER)) for one in listed],
            "signer_infos": [self._signature(content.dump()) for _ in range(signatures)],
        }
        token = cms.ContentInfo({"content_type": "signed_data", "content": cms.SignedData(signed)})
        return tsp.TimeStampResp({"status": {"status": status}, "time_stamp_token": token}).dump()

    def _signature(self, content: bytes) -> cms.SignerInfo:
        certificate = asn1_x509.Certificate.load(self.certificate.public_bytes(Encoding.DER))
        attributes = cms.CMSAttributes(
            [
                {"type": "content_type", "values": ["tst_info"]},
                {"type": "message_digest", "values": [hashlib.sha256(content).digest()]},
                {
                    "type": "signing_certificate_v2",
                    "values": [{"certs": [{"cert_hash": hashlib.sha256(certificate.dump()).digest()}]}],
                },
            ]
        )
        return cms.SignerInfo(
            {
                "version": "v1",
                "sid": cms.SignerIdentifier(
                    "issuer_and_serial_number",
                    {"issuer": certificate.issuer, "serial_number": certificate.serial_number},
                ),
                "digest_algorithm": SHA256,
                "signed_attrs": attributes,
                "signature_algorithm": {"algorithm": "sha256_ecdsa"},
                "signature": self.key.sign(attributes.dump(), ec.ECDSA(hashes.SHA256())),
            }
        )

    def answer(self, request: bytes, **changes: Any) -> bytes:
        """The token that a TimeStampReq asks for."""
        asked = tsp.TimeStampReq.load(request, strict=True)
        assert asked["version"].native == "v1" and asked["cert_req"].native is True
        assert asked["message_imprint"]["hash_algorithm"]["algorithm"].native == "sha256"
        return self.token(
            **{
                "digest": asked["message_imprint"]["hashed_message"].native,
                "nonce": asked["nonce"].native,
                "time": datetime.now(UTC).replace(microsecond=0),
                **changes,
            }
        )
