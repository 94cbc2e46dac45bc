"""The URL of a bucket on a server, taken apart; no error repeats any of it, for it may hold a secret."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from kmp_core.errors import ConfigurationError, Fault

__all__ = ["ServerUrl", "fault"]


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """The parts of `scheme://[user[:secret]@][host[:port]][/bucket]`; with `+http` the scheme speaks no TLS."""

    protocol: str
    authority: str
    user: str
    secret: str = field(repr=False)
    bucket: str

    @classmethod
    def read(cls, url: str, *, schemes: Collection[str], prefix: str, example: str) -> ServerUrl:
        """Raises `ConfigurationError`. `prefix` is that of the settings, which parameters belong into."""
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError:
            raise fault("is no URL, or its port is no number from 0 to 65535", example) from None
        if parts.scheme not in schemes:
            raise fault(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}", example)
        if not parts.netloc and parts.path:
            raise fault("lacks the two slashes before the host", example)
        if parts.query or parts.fragment:
            raise fault(f"takes no parameters; tune with {prefix}_...", example)
        return cls(
            protocol="http" if parts.scheme.endswith("+http") else "https",
            authority=parts.netloc.rpartition("@")[2],
            user=unquote(parts.username or ""),
            secret=unquote(parts.password or ""),
            bucket=parts.path.strip("/"),
        )


def fault(problem: str, example: str) -> ConfigurationError:
    """What is wrong with the URL."""
    return ConfigurationError(Fault("KMP_STORAGE_BUCKET_URL", problem, example=example))
