"""One certificate for all parts of a server, by which they recognise each other (mutual TLS)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from ragllava.errors import SettingsError
from ragllava.whole_files import write_whole

_VALID = timedelta(days=3650)  # a certificate is made at each start, so it only has to outlive one run
_LATE_CLOCK = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files: the authority's certificate, one that it signed, and the key of the latter."""

    authority: Path
    certificate: Path
    key: Path


def certificates_in(folder: Path) -> Certificates:
    """The names that the files have in a folder."""
    return Certificates(folder / "authority.pem", folder / "certificate.pem", folder / "key.pem")


def make_certificates(folder: Path, address: str) -> None:
    """Write new files into `folder` for a server at this IP address; files of an earlier run are replaced.

    The key of the authority is not kept, so nobody can make a second certificate. Raises SettingsError without the
    package `cryptography`.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise SettingsError(f"{error}: run `pip install 'ragllava[local]'`") from None

    now = datetime.now(UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def name(common_name: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])

    def unsigned(common_name: str, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(name("RagLLaVA home"))
            .subject_name(name(common_name))
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _LATE_CLOCK)
            .not_valid_after(now + _VALID)
        )

    authority = (
        unsigned("RagLLaVA home", authority_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    certificate = (
        unsigned("part", key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    folder.mkdir(mode=0o700, exist_ok=True)
    paths = certificates_in(folder)
    write_whole(paths.authority, authority.public_bytes(serialization.Encoding.PEM), 0o600)
    write_whole(paths.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o600)
    write_whole(paths.key, private, 0o600)
