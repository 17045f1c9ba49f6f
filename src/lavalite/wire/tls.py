"""TLS for frames: both sides show a certificate of the cluster's own authority."""

from __future__ import annotations

import ssl

from pydantic import BaseModel, ConfigDict

from lavalite.base.errors import InputError


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
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED
        return self._loaded(context)

    def client_context(self) -> ssl.SSLContext:
        """For dialling. Raises InputError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = self.check_hostname
        return self._loaded(context)

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.ca_path)
            context.load_cert_chain(self.certificate_path, self.key_path, password="")  # never ask a terminal
        except OSError as error:  # ssl.SSLError is one
            paths = f"{self.ca_path}, {self.certificate_path} and {self.key_path}"
            hint = "They must be readable PEM files, and the key must belong to the certificate."
            reason = error.strerror or str(error)
            raise InputError(f"cannot load {paths}: {reason}", code="bad_tls", field="tls", hint=hint) from None
        return context
