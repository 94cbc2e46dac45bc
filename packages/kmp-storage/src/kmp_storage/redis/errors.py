"""What the errors of redis-py and of the server are to a user, and which of them mean that Redis is away."""

from __future__ import annotations

import ssl

from kmp_core.deadlines import remaining
from kmp_core.errors import (
    AccessDenied,
    BackendError,
    DeadlineExceeded,
    ErrorTable,
    KmpError,
    OutcomeUnknown,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from kmp_core.plugins import extra

with extra("redis", install="kmp-storage[redis]"):
    from redis import exceptions

__all__ = ["ERRORS", "Elsewhere", "Untrusted", "is_outage"]

_BACKEND = "redis"


class Untrusted(Unavailable):
    """Something answers, and its certificate does not hold: at the start of a service a fault, and no outage."""


class Elsewhere(BackendError):
    """What was asked for is at another node of a Redis Cluster: `place`, which is None while half of it has moved.

    `once` where that node has it only for who was sent there. A cluster's client follows; nobody else should see it.
    """

    def __init__(self, place: tuple[str, int] | None, *, once: bool) -> None:
        message = "this Redis is a node of a Cluster; write redis+cluster:// in KMP_STORAGE_CACHE_URL"
        super().__init__(message, backend=_BACKEND)
        self.place = place
        self.once = once


def _elsewhere(error: BaseException) -> KmpError:
    place = (error.host, error.port) if isinstance(error, exceptions.AskError) else None
    return Elsewhere(place, once=not isinstance(error, exceptions.MovedError))


def _unavailable(error: BaseException) -> KmpError:
    if isinstance(error.__context__, ssl.SSLCertVerificationError):
        return Untrusted(
            f"the certificate of Redis does not hold: {error.__context__.verify_message}", backend=_BACKEND
        )
    return Unavailable(f"Redis does not answer: {error}", backend=_BACKEND)


def _refuses(error: BaseException) -> KmpError:
    return Unavailable(f"Redis refuses for now: {error}", backend=_BACKEND)


def _failed(error: BaseException) -> KmpError:
    return BackendError(f"Redis refused the call: {error}", backend=_BACKEND)


def _unauthenticated(error: BaseException) -> KmpError:
    return Unauthenticated("invalid", message="Redis refused the user or its password")


def _forbidden(error: BaseException) -> KmpError:
    # The server's words name the command or the key pattern, and no secret.
    return PermissionDenied(f"Redis refused by its access list: {error}")


ERRORS = ErrorTable(
    {
        OSError: _unavailable,
        exceptions.ConnectionError: _unavailable,
        exceptions.TimeoutError: _unavailable,
        exceptions.InvalidResponse: _unavailable,
        exceptions.BusyLoadingError: _refuses,
        exceptions.AuthenticationError: _unauthenticated,
        exceptions.AuthorizationError: _forbidden,
        exceptions.NoPermissionError: _forbidden,
        exceptions.ReadOnlyError: _refuses,
        exceptions.OutOfMemoryError: _refuses,
        exceptions.ClusterDownError: _refuses,
        exceptions.TryAgainError: _elsewhere,
        exceptions.AskError: _elsewhere,
        exceptions.RedisError: _failed,
    }
)
"""The one table between redis-py and us."""


def is_outage(error: KmpError) -> bool:
    """Whether this says that Redis is away, rather than that the caller's task has no time left or may not ask."""
    if isinstance(error, AccessDenied):
        return False
    if isinstance(error, DeadlineExceeded):
        return remaining() != 0
    return isinstance(error, Unavailable | OutcomeUnknown)
