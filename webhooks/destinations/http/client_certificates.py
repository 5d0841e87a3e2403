"""The client certificates that connections present to endpoints (mTLS): checked when they are given, sealed at rest."""

from __future__ import annotations

import datetime
import hashlib
import os
import ssl
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from core.encryption import decrypt, encrypt

# The largest chain, and the largest key.  Usual ones have a fifth of this.
MAX_PEM_CHARACTERS = 32_768
MAX_CERTIFICATES = 10
# A handshake signs with the key on the event loop that all organizations share: 8,192 bits take eight times as long as
# 4,096, and checking such a key takes seconds.
MAX_RSA_BITS = 4096
_MAX_NAME = 300


class CertificateError(ValueError):
    """A client certificate can't be used.  field: which part; the message says why, in words for its owner."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclass(frozen=True, slots=True)
class ClientCertificate:
    """A certificate, those that lead to its authority, and its private key.

    pem: all of them.  digest: of that.  expires_at: the end of the first that ends.
    details: what may be shown.
    """

    pem: str = field(repr=False)
    digest: str
    expires_at: datetime.datetime
    details: dict[str, Any] = field(repr=False, compare=False, hash=False)

    def has_expired(self, now: datetime.datetime) -> bool:
        """Return whether it has expired."""
        return now >= self.expires_at


def check_client_certificate(certificate: str, private_key: str, now: datetime.datetime) -> ClientCertificate:
    """Return what was given in PEM as it is stored and used.  Raises CertificateError."""
    for name, text in (("certificate", certificate), ("private_key", private_key)):
        if len(text) > MAX_PEM_CHARACTERS:
            raise CertificateError(name, f"must have at most {MAX_PEM_CHARACTERS:,} characters")
    if "PRIVATE KEY" in certificate:
        raise CertificateError("certificate", "must hold certificates alone: give the key in `private_key`")
    try:
        chain = x509.load_pem_x509_certificates(certificate.encode())
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise CertificateError("certificate", "is not a certificate in PEM (-----BEGIN CERTIFICATE-----)") from None
    if len(chain) > MAX_CERTIFICATES:
        raise CertificateError("certificate", f"must hold at most {MAX_CERTIFICATES} certificates")
    key = _load_key(private_key)
    try:
        public = [
            one.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            for one in (chain[0].public_key(), key.public_key())
        ]
        pem = "".join(one.public_bytes(Encoding.PEM).decode() for one in chain)
        found = _describe(pem + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(), chain)
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError("certificate", "holds a certificate or key that can't be used") from None
    if public[0] != public[1]:
        raise CertificateError("private_key", "is not the key of the first certificate")
    for one in chain:
        if now >= one.not_valid_after_utc:
            raise CertificateError("certificate", f"has expired: it was valid until {one.not_valid_after_utc:%Y-%m-%d}")
    if now < chain[0].not_valid_before_utc:
        raise CertificateError("certificate", f"is not valid before {chain[0].not_valid_before_utc:%Y-%m-%d}")
    try:
        load_into(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), found)
    except (ssl.SSLError, ValueError):
        raise CertificateError("certificate", "is refused by OpenSSL: its key or signature is too weak") from None
    return found


def _load_key(private_key: str) -> RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey:
    """Return a private key whose use doesn't take long.  Raises CertificateError."""
    try:
        # Whether the numbers of an RSA key are primes is checked once it is known that they aren't huge.
        key = load_pem_private_key(private_key.encode(), None, unsafe_skip_rsa_key_validation=True)
        if isinstance(key, RSAPrivateKey):
            if key.key_size > MAX_RSA_BITS:
                raise CertificateError("private_key", f"must have at most {MAX_RSA_BITS:,} bits")
            key = load_pem_private_key(private_key.encode(), None)
    except CertificateError:
        raise
    except TypeError:
        raise CertificateError("private_key", "must not be encrypted with a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise CertificateError("private_key", "is not a private key in PEM (-----BEGIN PRIVATE KEY-----)") from None
    if not isinstance(key, RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey | Ed448PrivateKey):
        raise CertificateError("private_key", "must be an RSA or elliptic-curve key")
    return key


def _describe(pem: str, chain: list[x509.Certificate]) -> ClientCertificate:
    first = chain[0]
    expires_at = min(one.not_valid_after_utc for one in chain)
    digest = hashlib.sha256(pem.encode()).hexdigest()
    fingerprint = hashlib.sha256(first.public_bytes(Encoding.DER)).hexdigest()
    details = {
        "subject": first.subject.rfc4514_string()[:_MAX_NAME],
        "issuer": first.issuer.rfc4514_string()[:_MAX_NAME],
        "fingerprint_sha256": fingerprint,
        "not_before": first.not_valid_before_utc.isoformat(),
        "expires_at": expires_at.isoformat(),
    }
    return ClientCertificate(pem, digest, expires_at, details)


def seal_client_certificate(certificate: ClientCertificate) -> str:
    """Return it encrypted, as text."""
    return encrypt(certificate.pem)


def open_client_certificate(sealed: str) -> ClientCertificate | None:
    """Return what was sealed; None for nothing.  Raises DecryptionError if no key fits, or ValueError."""
    if not sealed:
        return None
    pem = decrypt(sealed)
    return _describe(pem, x509.load_pem_x509_certificates(pem.encode()))


def load_into(context: ssl.SSLContext, certificate: ClientCertificate) -> None:
    """Let connections of the context present the certificate.  Raises ssl.SSLError if OpenSSL refuses it.

    Python reads certificates and keys from files alone: this one is in memory, and no other process can open it.
    """
    descriptor = os.memfd_create("client-certificate", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb") as file:
        file.write(certificate.pem.encode())
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
