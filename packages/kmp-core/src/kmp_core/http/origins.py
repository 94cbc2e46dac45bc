"""Where a credential may be sent: to the one origin it is meant for, and over nothing that others can read."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from kmp_core.errors import ConfigurationError, Fault

__all__ = ["Origin", "credential_origin", "origin_of"]

Origin = tuple[str, str, int]
"""Scheme, host and port (RFC 6454, section 4)."""

_PORTS = {"http": 80, "https": 443}


def origin_of(scheme: str, host: str, port: int | None) -> Origin:
    """The origin, with the scheme's port where none is given."""
    scheme = scheme.lower()
    return scheme, host.lower().strip("[]"), _PORTS.get(scheme, 0) if port is None else port


def credential_origin(url: str, *, field: str, plaintext: bool = False) -> Origin:
    """The origin of an address that credentials may be sent to.

    Raises `ConfigurationError` unless it is https, or http to this very machine, or `plaintext` accepts the risk.
    """
    example = "https://delays.skyline.example"
    try:
        parts = urlsplit(url)
        origin = origin_of(parts.scheme, parts.hostname or "", parts.port)
    except ValueError:
        raise ConfigurationError(Fault(field, "is not an address", example=example)) from None
    if origin[0] not in _PORTS or not origin[1]:
        raise ConfigurationError(Fault(field, "is not an http or https address", example=example))
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError(Fault(field, "must not carry credentials", example=example))
    if origin[0] == "http" and not plaintext and not _is_loopback(origin[1]):
        raise ConfigurationError(Fault(field, "would send credentials in the clear: use https", example=example))
    return origin


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, section 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
