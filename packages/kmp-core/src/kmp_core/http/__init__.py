"""Call another service: its token attached, the trace and the deadline sent along, failures as our errors."""

from kmp_core.http.service_client import ClientCredentials, ServiceClient, client

__all__ = ["ClientCredentials", "ServiceClient", "client"]
