"""What PostgreSQL's errors mean to a caller, decided by their code (SQLSTATE) and never by their message.

A value that was refused may stand in a message, so only messages about statements (class 42) are passed on.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable

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
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from kmp_core.plugins import extra

with extra("asyncpg", install="kmp-core[postgres]"):
    import asyncpg

__all__ = ["BACKEND", "ERRORS", "Contention", "is_answer", "loses_connection", "took_no_effect", "turns_pool_over"]

BACKEND = "postgresql"

_READ_ONLY = "25006"
_LOST = frozenset(("57P01", "57P02", "57P03", "57P05", _READ_ONLY))


class Contention(BackendError):
    """The work got in the way of other work (a deadlock, or a serialization failure) and was undone: do it again."""

    retryable = True


def is_answer(error: BaseException) -> bool:
    """Whether the server itself answered with this error and goes on listening to the same connection."""
    return isinstance(error, asyncpg.PostgresError) and not loses_connection(error)


def took_no_effect(error: BaseException) -> bool:
    """Whether the server said that the statement failed, so that nobody needs to wonder."""
    return is_answer(error) or getattr(error, "sqlstate", None) == _READ_ONLY


def loses_connection(error: BaseException) -> bool:
    """Whether the connection is of no use after this error: the server left, or lets nobody write any more."""
    code = getattr(error, "sqlstate", None) or ""
    return code in _LOST or code.startswith("08")


def turns_pool_over(error: BaseException) -> bool:
    """Whether idle connections are in the same trouble: a failover made their server a read-only one, or ended it."""
    return (getattr(error, "sqlstate", None) or "") in _LOST


def _postgres(error: BaseException) -> KmpError:
    code = getattr(error, "sqlstate", None) or "?"
    name = f"{type(error).__name__}, {code}"
    for prefix in (code, code[:2]):
        make = _BY_CODE.get(prefix)
        if make is not None:
            return make(error, name)
    return BackendError(f"PostgreSQL failed ({name})", backend=BACKEND)


def _said(error: BaseException) -> str:
    # Without the detail and the hint, which quote values.
    return str(error.args[0]) if error.args else type(error).__name__


def _conflict(error: BaseException, name: str) -> KmpError:
    constraint = getattr(error, "constraint_name", None)
    return Conflict(f"PostgreSQL refused the row ({name})", key=constraint)


_BY_CODE: dict[str, Callable[[BaseException, str], KmpError]] = {
    "08": lambda error, name: Unavailable(f"The connection to PostgreSQL is lost ({name})", backend=BACKEND),
    "0A": lambda error, name: Unsupported("this", provider="PostgreSQL", instead=_said(error)),
    "22": lambda error, name: InvalidInput("value", f"does not fit ({name})"),
    "23": _conflict,
    _READ_ONLY: lambda error, name: Unavailable(f"PostgreSQL only lets read there ({name})", backend=BACKEND),
    "28": lambda error, name: Unauthenticated("login", message=f"PostgreSQL refused the login ({name})"),
    "3D": lambda error, name: ConfigurationError(Fault("the URL's database", "does not exist there")),
    "40": lambda error, name: Contention(f"Work of others was in the way ({name})", backend=BACKEND),
    "42": lambda error, name: InvalidInput("statement", _said(error)),
    "42501": lambda error, name: PermissionDenied(_said(error)),
    "53300": lambda error, name: Unavailable(f"PostgreSQL gives no more connections ({name})", backend=BACKEND),
    "55P03": lambda error, name: Contention(f"A lock was not free ({name})", backend=BACKEND),
    "57": lambda error, name: Unavailable(f"PostgreSQL is not available ({name})", backend=BACKEND),
    "57014": lambda error, name: DeadlineExceeded(f"PostgreSQL stopped the statement ({name})", backend=BACKEND),
}


def _interface(error: BaseException) -> KmpError:
    if isinstance(error, ValueError):  # asyncpg's own DataError, whose message quotes the value
        return InvalidInput("argument", "does not fit its place in the statement")
    return Unavailable(f"The connection to PostgreSQL is of no use ({type(error).__name__})", backend=BACKEND)


def _certificate(error: BaseException) -> KmpError:
    reason = getattr(error, "verify_message", None) or "it is not trusted"
    return ConfigurationError(
        Fault(
            "sslrootcert",
            f"the server's certificate was refused: {reason}",
            example="?sslmode=verify-full&sslrootcert=/etc/ssl/postgres-ca.pem",
        ),
        heading="The connection to PostgreSQL is not safe",
    )


ERRORS = ErrorTable(
    {
        asyncpg.PostgresError: _postgres,
        asyncpg.InterfaceError: _interface,
        asyncpg.InternalClientError: _interface,
        ssl.SSLCertVerificationError: _certificate,
        OSError: lambda error: Unavailable(f"PostgreSQL cannot be reached ({type(error).__name__})", backend=BACKEND),
        TimeoutError: lambda error: DeadlineExceeded("PostgreSQL did not answer in time", backend=BACKEND),
    }
)
