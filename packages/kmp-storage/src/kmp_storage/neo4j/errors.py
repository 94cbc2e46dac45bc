"""What the errors of the Neo4j driver and of the server are to a user."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from kmp_core.errors import (
    BackendError,
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    ErrorTable,
    Fault,
    InvalidInput,
    KmpError,
    PermissionDenied,
    PoolExhausted,
    Unauthenticated,
    Unavailable,
)
from kmp_core.plugins import extra

with extra("neo4j", install="kmp-storage[neo4j]"):
    from neo4j import exceptions

__all__ = ["BACKEND", "ERRORS", "LOST"]

BACKEND = "neo4j"

LOST = (
    OSError,
    EOFError,
    exceptions.ServiceUnavailable,
    exceptions.SessionExpired,
    exceptions.BrokenRecordError,
    Unavailable,
)
"""What says that the connection went while an answer was due."""

_TIMED_OUT = frozenset(
    f"Neo.ClientError.Transaction.{name}"
    for name in ("TransactionTimedOut", "TransactionTimedOutClientConfiguration", "LockAcquisitionTimeout")
)


def _lost(error: BaseException) -> KmpError:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Unavailable(f"the certificate of Neo4j does not hold: {cause.verify_message}", backend=BACKEND)
    return Unavailable(f"Neo4j does not answer: {error}", backend=BACKEND)


def _exhausted(error: BaseException) -> KmpError:
    return PoolExhausted("no connection to Neo4j became free in time: raise the pool size", backend=BACKEND)


def _passing(error: BaseException) -> KmpError:
    """Deadlocks, elections, memory that is short for now: the server rolled the transaction back."""
    return Unavailable(f"Neo4j refuses for now: {_told(error)}", backend=BACKEND)


def _unauthenticated(error: BaseException) -> KmpError:
    return Unauthenticated("invalid", message="Neo4j refused the user or the password")


def _forbidden(error: BaseException) -> KmpError:
    return PermissionDenied(f"Neo4j refused: {_told(error)}")


def _conflict(error: BaseException) -> KmpError:
    return Conflict(f"Neo4j holds something that contradicts this: {_told(error)}")


def _server(error: BaseException) -> KmpError:
    code = getattr(error, "code", None) or ""
    if code in _TIMED_OUT:
        return DeadlineExceeded("Neo4j ended the transaction, whose time was over", backend=BACKEND)
    if code.startswith("Neo.ClientError.Security."):
        return _forbidden(error)
    if code.startswith("Neo.ClientError.Statement."):
        return InvalidInput("cypher", f"was refused by Neo4j: {_told(error)}")
    if code.startswith("Neo.ClientError.Database."):
        fault = Fault("KMP_STORAGE_NEO4J_DATABASE", "names a database that the server does not have", example="neo4j")
        return ConfigurationError(fault)
    if code.startswith("Neo.ClientError.Schema."):
        return _conflict(error)
    return BackendError(f"Neo4j failed: {_told(error)}", backend=BACKEND)


def _misconfigured(error: BaseException) -> KmpError:
    return ConfigurationError(Fault("KMP_STORAGE_GRAPH_URL", f"was refused by the driver: {error}"))


def _failed(error: BaseException) -> KmpError:
    return BackendError(f"the connection to Neo4j failed: {error}", backend=BACKEND)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it; the driver groups the failures of all addresses that it tried."""
    yield error
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _causes(one)
    if error.__cause__ is not None:
        yield from _causes(error.__cause__)


def _told(error: BaseException) -> str:
    """The server's words: they name labels and, for a constraint, the key; parameters are never among them."""
    return f"{getattr(error, 'message', None) or error}"


ERRORS = ErrorTable(
    {
        OSError: _lost,
        EOFError: _lost,
        exceptions.ServiceUnavailable: _lost,
        exceptions.SessionExpired: _lost,
        exceptions.BrokenRecordError: _lost,
        exceptions.ConnectionAcquisitionTimeoutError: _exhausted,
        exceptions.TransientError: _passing,
        exceptions.AuthError: _unauthenticated,
        exceptions.Forbidden: _forbidden,
        exceptions.ConstraintError: _conflict,
        exceptions.Neo4jError: _server,
        exceptions.ConfigurationError: _misconfigured,
        exceptions.DriverError: _failed,
    }
)
"""The one table between the Neo4j driver and us."""
