"""What the services of this example are told from outside, beside what every KMP service is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from kmp_core.settings import Settings
from kmp_core.settings.url import ConnectionUrl

__all__ = ["SkylineSettings", "StoreUrls"]


class SkylineSettings(Settings, prefix="skyline"):
    """Set as `KMP_SKYLINE_…`; the secret comes as a file in the directory that `KMP_SECRETS_DIR` names."""

    authority: str = Field("http://127.0.0.1:8400", pattern="^https?://")
    """Address of the authority: it issues the tokens, and is their issuer."""

    trust_domain: str = "kmp.local"
    """The trust domain of everybody's identity."""

    keys: Path = Path("keys.json")
    """File with the authority's public keys, a JSON Web Key Set."""

    client_id: str = ""
    """This service's name at the authority."""

    client_secret: SecretStr = SecretStr("")
    """What this service proves itself to the authority with."""

    given_token: SecretStr = SecretStr("")
    """A token for `delays` that `tower` should never have been given."""

    delays: str = Field("http://127.0.0.1:8401", pattern="^https?://")
    """Address of the service `delays`."""

    foreign_graph: str = ""
    """Address of skyline's graph where it is on a server of its own; `tower` has no password for it."""

    port: int = Field(8401, ge=1, le=65535)
    """Port on the loopback address that `delays` listens at."""

    limit: int | None = Field(None, ge=1)
    """Number of flights to publish, spread evenly over the year; all where not set."""

    batch_rows: int = Field(500, ge=1, le=10_000)
    """Number of events that are published, and handled, at a time."""

    def public_keys(self) -> Any:
        """The content of `keys`."""
        return json.loads(self.keys.read_bytes())


class StoreUrls(Settings, prefix="storage"):
    """Where this service's own stores are, with its own credentials; None is embedded."""

    timeseries_url: ConnectionUrl | None = None
    """The database."""

    graph_url: ConnectionUrl | None = None
    """The graph's instance."""

    cache_url: ConnectionUrl | None = None
    """The cache."""

    bucket_url: ConnectionUrl | None = None
    """The bucket."""
