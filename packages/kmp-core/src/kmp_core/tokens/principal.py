"""Who is calling: the proved identity of another service, and the way to ask for it anywhere in a request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

from kmp_core.errors import PermissionDenied, Unauthenticated
from kmp_core.project import Project, ServiceName

__all__ = ["Principal", "acting_as", "caller", "current_caller"]


@dataclass(frozen=True)
class Principal:
    """A caller that a verifier vouched for. `project` and `service` come from its SPIFFE ID and nowhere else."""

    project: Project
    service: ServiceName
    subject: str
    """The SPIFFE ID: `spiffe://<trust domain>/ns/<project>/sa/<service>`."""
    issuer: str
    audience: str
    client_id: str
    token_id: str
    issued: float
    not_before: float
    expires: float
    """Seconds since 1970, as in the token; `expires_at` is the same as a `datetime`."""
    scopes: frozenset[str] = frozenset()
    claims: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False, compare=False)
    """All that the token says. Treat it as data from outside: only what has a field here was checked."""

    @classmethod
    def proved(cls, facts: dict[str, Any]) -> Self:
        """A principal of these, all of its fields: for verifiers, in a third of the constructor's time."""
        principal = object.__new__(cls)
        object.__setattr__(principal, "__dict__", facts)
        return principal

    @property
    def issued_at(self) -> datetime:
        """When the token was issued."""
        return datetime.fromtimestamp(self.issued, UTC)

    @property
    def expires_at(self) -> datetime:
        """When the token stops being valid."""
        return datetime.fromtimestamp(self.expires, UTC)

    def require(self, *, project: str | None = None, service: str | None = None, scope: str | None = None) -> None:
        """Return when the caller is of this project, is this service, and holds this scope, as far as each is given.

        Raises `PermissionDenied`.
        """
        if project is not None and self.project != project:
            raise PermissionDenied(f"Callers of project {self.project} may not do this", project=self.project)
        if service is not None and self.service != service:
            raise PermissionDenied(f"The service {self.service} may not do this", project=self.project)
        if scope is not None and scope not in self.scopes:
            raise PermissionDenied(f"The scope {scope} is needed for this", project=self.project)


_caller: ContextVar[Principal | None] = ContextVar("kmp_caller", default=None)


def caller() -> Principal:
    """The principal of the request that is being served. Raises `Unauthenticated` where none was proved."""
    principal = _caller.get()
    if principal is None:
        raise Unauthenticated("missing", message="Nobody is authenticated here")
    return principal


def current_caller() -> Principal | None:
    """The principal of the request that is being served, or None where nobody was proved."""
    return _caller.get()


@contextmanager
def acting_as(principal: Principal) -> Iterator[None]:
    """Run a block as a request of `principal`: what the middleware does, and what a test of a handler wants."""
    token = _caller.set(principal)
    try:
        yield
    finally:
        _caller.reset(token)
