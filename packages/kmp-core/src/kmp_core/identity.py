"""Who a service is, in the form that certificates and tokens of any issuer carry: a SPIFFE ID.

The rules are those of the SPIFFE-ID specification (https://spiffe.io/docs/latest/spiffe-specs/spiffe-id/), sections
2.1 to 2.4. Our own identities have the path `/ns/<project>/sa/<service>`, as on Kubernetes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from kmp_core.errors import InvalidInput
from kmp_core.project import Project, ServiceName

__all__ = ["SpiffeId"]

MAX_BYTES = 2048
"""Section 2.3: longer ones should not be generated, and we accept none, since nobody has to support them."""

MAX_TRUST_DOMAIN_BYTES = 255
"""Section 2.3, from the host component of RFC 3986."""

_EXAMPLE = "spiffe://example.org/ns/skyline/sa/departures"
_SCHEME = "spiffe://"
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+", re.ASCII)
_SEGMENT = re.compile(r"[a-zA-Z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class SpiffeId:
    """An identity that was checked when it was made: two are equal exactly when they name the same workload.

    Make one with `parse` or `for_service`. The path is empty, or begins with `/` and does not end with it. Raises
    `InvalidInput` that says which rule was broken and does not repeat what was given.

    >>> identity = SpiffeId.parse("spiffe://example.org/ns/skyline/sa/departures")
    >>> identity.project, identity.service
    ('skyline', 'departures')
    """

    trust_domain: str
    path: str = ""

    def __post_init__(self) -> None:
        problem = _trust_domain_problem(self.trust_domain) or _path_problem(self.path)
        if problem is None and len(str(self)) > MAX_BYTES:
            problem = f"must not be longer than {MAX_BYTES} bytes"
        if problem is not None:
            raise InvalidInput("SPIFFE ID", problem, example=_EXAMPLE)

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Read an identity. Scheme and trust domain may come in any letter case (section 2.4) and end in lower case."""
        text = _ascii(text)
        if text[: len(_SCHEME)].lower() != _SCHEME:
            raise InvalidInput("SPIFFE ID", f"must begin with {_SCHEME}", example=_EXAMPLE)
        trust_domain, slash, path = text[len(_SCHEME) :].partition("/")
        return cls(trust_domain.lower(), slash + path)

    @classmethod
    def for_service(cls, trust_domain: str, project: Project, service: ServiceName) -> SpiffeId:
        """The identity of a service of a project."""
        return cls(trust_domain.lower(), f"/ns/{Project(project)}/sa/{ServiceName(service)}")

    @property
    def project(self) -> Project | None:
        """The project, or None where the path is not one of ours."""
        names = self._names()
        return None if names is None else names[0]

    @property
    def service(self) -> ServiceName | None:
        """The service, or None where the path is not one of ours."""
        names = self._names()
        return None if names is None else names[1]

    def _names(self) -> tuple[Project, ServiceName] | None:
        match self.path.split("/"):
            case ["", "ns", project, "sa", service]:
                try:
                    return Project(project), ServiceName(service)
                except InvalidInput:  # a Kubernetes namespace may have a name that no project may have
                    return None
            case _:
                return None

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain}{self.path}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any) -> SpiffeId:
            try:
                return value if isinstance(value, SpiffeId) else cls.parse(value)
            except InvalidInput as error:
                raise ValueError(f"{error.problem}; for example {error.example}") from None

        return core_schema.no_info_plain_validator_function(validate, serialization=core_schema.to_string_ser_schema())


def _ascii(value: object) -> str:
    # Claims and certificates hold anything.
    if isinstance(value, str) and len(value) <= MAX_BYTES and value.isascii():
        return value
    raise InvalidInput("SPIFFE ID", f"must be ASCII text of at most {MAX_BYTES} bytes", example=_EXAMPLE)


def _trust_domain_problem(trust_domain: str) -> str | None:
    if not trust_domain:
        return "must name a trust domain"
    if len(trust_domain) > MAX_TRUST_DOMAIN_BYTES:
        return f"must have a trust domain of at most {MAX_TRUST_DOMAIN_BYTES} bytes"
    if _TRUST_DOMAIN.fullmatch(trust_domain) is None:
        return "must have a trust domain of a-z, 0-9, '.', '-' and '_' only, with no user, port, query or fragment"
    return None


def _path_problem(path: str) -> str | None:
    if not path:
        return None
    if path[0] != "/":
        return "must have a path that begins with '/'"
    for segment in path[1:].split("/"):
        if segment in ("", ".", ".."):
            return "must not have an empty, '.' or '..' segment in its path, nor end with '/'"
        if _SEGMENT.fullmatch(segment) is None:
            return "must have a path of a-z, A-Z, 0-9, '.', '-' and '_' only, with no query, fragment or '%'"
    return None
