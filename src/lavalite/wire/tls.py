"""TLS for frames and for the API, by certificates of the cluster's own authority.

Between daemons both sides show one. People show a token instead, so the API asks nobody for a certificate.
A certificate that is replaced on disk is used from the next connection on: nothing has to restart for that.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict

from lavalite.base.errors import InputError

log = structlog.get_logger(__name__)

Stamp = tuple[tuple[int, int, int], ...]


class TlsConfig(BaseModel):
    """Paths of PEM files. `ca_path` is the cluster's authority: nothing that the system trusts is trusted here."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ca_path: str
    certificate_path: str
    key_path: str
    check_hostname: bool = True
    """Whether the server's certificate must name the host or address that was dialled."""

    def server_context(self) -> ssl.SSLContext:
        """For a listener: a peer without a certificate of the authority is turned away. Raises InputError."""
        context = RenewedContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._loaded(context)

    def api_context(self) -> ssl.SSLContext:
        """For the API: we show our certificate and ask for none. Raises InputError."""
        return self._loaded(RenewedContext(ssl.PROTOCOL_TLS_SERVER), least=ssl.TLSVersion.TLSv1_2)

    def client_context(self) -> ssl.SSLContext:
        """For dialling. Raises InputError."""
        context = RenewedContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_hostname
        return self._loaded(context)

    def _loaded(self, context: RenewedContext, least: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
        context.minimum_version = least
        try:
            context.follow(self)
        except OSError as error:  # ssl.SSLError is one
            paths = f"{self.ca_path}, {self.certificate_path} and {self.key_path}"
            hint = "They must be readable PEM files, and the key must belong to the certificate."
            reason = error.strerror or str(error)
            raise InputError(f"cannot load {paths}: {reason}", code="bad_tls", field="tls", hint=hint) from None
        return context


class RenewedContext(ssl.SSLContext):
    """Looks at its files before each handshake, and loads them again when they changed.

    An authority that is added is trusted from then on; one that is taken away is, until the process ends.
    """

    _files: TlsConfig
    _stamp: Stamp = ()

    def follow(self, files: TlsConfig) -> None:
        """Load `files` now, and whenever they change. Raises OSError."""
        self._files = files
        stamp = _stamp(files)
        _load(self, files)
        self._stamp = stamp

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """As asyncio and uvloop ask for each connection."""
        self._renew()
        return super().wrap_bio(*args, **kwargs)

    def _renew(self) -> None:
        """Files that are being written, or do not fit together, change nothing: the next handshake looks again."""
        try:
            stamp = _stamp(self._files)
            if stamp == self._stamp:
                return
            _load(ssl.SSLContext(self.protocol), self._files)  # a trial, since half of it would already be in use
            _load(self, self._files)
        except OSError as error:
            log.warning("the new certificate is not used", path=self._files.certificate_path, reason=str(error))
            return
        self._stamp = stamp
        log.info("the certificate was read again", path=self._files.certificate_path)


def refusal(error: OSError) -> str:
    """Why a handshake failed, in words that say which side has to mend what."""
    text = f"{getattr(error, 'reason', '') or ''} {error}".upper().replace(" ", "_")
    for mark, words in _WORDS:
        if mark in text:
            return words
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message.rstrip(".")
    return error.strerror or str(error)


_WORDS = (
    ("PEER_DID_NOT_RETURN_A_CERTIFICATE", "the peer shows no certificate"),
    ("ALERT_CERTIFICATE_REQUIRED", "the peer wants a certificate of the cluster's authority, and we showed none"),
    ("HOSTNAME_MISMATCH", "its certificate does not name the host that was dialled"),
    ("IP_ADDRESS_MISMATCH", "its certificate does not name the address that was dialled"),
    ("CERTIFICATE_HAS_EXPIRED", "the peer's certificate has expired"),
    ("CERTIFICATE_IS_NOT_YET_VALID", "the peer's certificate is not valid yet: compare the clocks"),
    ("SELF-SIGNED_CERTIFICATE", "the peer's certificate is not of the cluster's authority"),
    ("UNABLE_TO_GET_LOCAL_ISSUER", "the peer's certificate is not of the cluster's authority"),
    ("CERTIFICATE_SIGNATURE_FAILURE", "the peer's certificate is not of the cluster's authority"),
    ("ALERT_UNKNOWN_CA", "the peer does not know the authority of our certificate"),
    ("ALERT_CERTIFICATE_EXPIRED", "the peer finds our certificate expired"),
    ("ALERT_BAD_CERTIFICATE", "the peer does not accept our certificate"),
    ("ALERT_CERTIFICATE_UNKNOWN", "the peer does not accept our certificate"),
    ("WRONG_VERSION_NUMBER", "the peer does not speak TLS"),
    ("HTTP_REQUEST", "the peer does not speak TLS"),
)


def _stamp(files: TlsConfig) -> Stamp:
    found = [Path(path).stat() for path in (files.ca_path, files.certificate_path, files.key_path)]
    return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)


def _load(context: ssl.SSLContext, files: TlsConfig) -> None:
    context.load_verify_locations(files.ca_path)
    context.load_cert_chain(files.certificate_path, files.key_path, password="")  # never ask a terminal
