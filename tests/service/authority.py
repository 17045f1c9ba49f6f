"""A throw-away authority for tests: PEM files for whoever asks, valid for an hour."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

HOUR = datetime.timedelta(hours=1)
LOOPBACK = ("localhost", "127.0.0.1")


class Authority:
    """Its own certificate is `ca_path`; those that it issues lie beside it."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.ca_path = folder / f"{name}.pem"
        self.ca_path.write_bytes(self._certificate(name, self._key, x509.BasicConstraints(True, None)))

    def issue(self, name: str, hosts: tuple[str, ...] = LOOPBACK) -> tuple[Path, Path]:
        """Certificate and key, made out for `hosts`; the same name again replaces both."""
        key = ec.generate_private_key(ec.SECP256R1())
        cert_path, key_path = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        kind, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key_path.write_bytes(key.private_bytes(kind, form, serialization.NoEncryption()))
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        names = x509.SubjectAlternativeName([_general(host) for host in hosts])
        cert_path.write_bytes(self._certificate(name, key, x509.BasicConstraints(False, None), usages, names))
        return cert_path, key_path

    def tls(self, name: str, hosts: tuple[str, ...] = LOOPBACK) -> dict[str, str]:
        """As a daemon's configuration has it under `tls:`."""
        cert_path, key_path = self.issue(name, hosts)
        return {"ca_path": str(self.ca_path), "certificate_path": str(cert_path), "key_path": str(key_path)}

    def _certificate(self, name: str, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType) -> bytes:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + HOUR)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
