"""What a failed HTTP call means to the caller, in our words: did it happen, and may it be tried again?"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from kmp_core.errors import (
    BackendError,
    DeadlineExceeded,
    ErrorTable,
    InvalidInput,
    KmpError,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    PoolExhausted,
    Unauthenticated,
    Unavailable,
)
from kmp_core.plugins import extra

with extra("httpx", install="kmp-core[http]"):
    import httpx

__all__ = ["IDEMPOTENT", "SAFE", "error_of", "table_for"]

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing (RFC 9110, section 9.2.1)."""

IDEMPOTENT = SAFE | {"PUT", "DELETE"}
"""Methods that may be repeated (RFC 9110, section 9.2.2)."""

_MAX_RETRY_AFTER = 3600.0


def table_for(method: str, backend: str) -> ErrorTable:
    """What httpx raises, translated for one call. A call that was never sent has a known outcome."""
    safe, repeatable = method in SAFE, method in IDEMPOTENT

    def unsent(_: BaseException) -> KmpError:
        return Unavailable(f"{backend} cannot be reached", backend=backend)

    def no_connection(_: BaseException) -> KmpError:
        return PoolExhausted(f"No connection to {backend} became free in time", backend=backend)

    def late(_: BaseException) -> KmpError:
        return DeadlineExceeded(f"{backend} did not answer in time", backend=backend, outcome_unknown=not safe)

    def broken(_: BaseException) -> KmpError:
        if repeatable:
            return Unavailable(f"The connection to {backend} broke", backend=backend, outcome_unknown=not safe)
        return OutcomeUnknown(f"The connection to {backend} broke before it answered", backend=backend)

    def ours(_: BaseException) -> KmpError:
        return InvalidInput("request", "cannot be sent as an HTTP request")

    def theirs(_: BaseException) -> KmpError:
        return BackendError(f"{backend} gave an answer that cannot be read", backend=backend, outcome_unknown=not safe)

    return ErrorTable(
        {
            httpx.ConnectError: unsent,
            httpx.ConnectTimeout: unsent,
            httpx.PoolTimeout: no_connection,
            httpx.TimeoutException: late,
            httpx.TransportError: broken,
            httpx.UnsupportedProtocol: ours,
            httpx.LocalProtocolError: ours,
            httpx.RequestError: theirs,
        }
    )


def error_of(response: httpx.Response, *, safe: bool, backend: str) -> KmpError | None:
    """The error that an answer stands for, or None where it is for the caller of the client to judge."""
    match response.status_code:
        case HTTPStatus.UNAUTHORIZED:
            return Unauthenticated("refused", message=f"{backend} did not accept this service's token")
        case HTTPStatus.FORBIDDEN:
            return PermissionDenied(f"{backend} does not let this service do that")
        case HTTPStatus.TOO_MANY_REQUESTS | HTTPStatus.SERVICE_UNAVAILABLE:
            after = _retry_after(response.headers.get("retry-after"))
            message = f"{backend} asks to come back later"
            if after is None:
                return Unavailable(message, backend=backend)
            return Overloaded(message, retry_after=after, backend=backend)
        case HTTPStatus.GATEWAY_TIMEOUT:
            return DeadlineExceeded(f"{backend} ran out of time", backend=backend, outcome_unknown=not safe)
        case _:
            return None


def _retry_after(value: str | None) -> float | None:
    """Seconds from either form of the header (RFC 9110, section 10.2.3), within an hour."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return min(float(value[:9]), _MAX_RETRY_AFTER)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(0.0, (moment - datetime.now(UTC)).total_seconds()), _MAX_RETRY_AFTER)
