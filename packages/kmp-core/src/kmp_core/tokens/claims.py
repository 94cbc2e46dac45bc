"""What an access token must say to be believed: RFC 9068, section 2.2 and 4, with every open choice closed."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from operator import itemgetter
from types import MappingProxyType
from typing import Any

from kmp_core.errors import InvalidInput, Unauthenticated
from kmp_core.identity import SpiffeId
from kmp_core.project import Project, ServiceName
from kmp_core.tokens.principal import Principal

__all__ = ["ClaimRules"]

_MAX_TEXT = 1024
_NO_SCOPES = frozenset[str]()
_required = itemgetter("iss", "aud", "sub", "client_id", "jti", "iat", "exp")  # RFC 9068, section 2.2
_EPOCH_END = 253_402_300_800  # the year 10000: beyond, `datetime` has no word for it


@dataclass(frozen=True, slots=True)
class ClaimRules:
    """What one service accepts. Seconds throughout."""

    issuer: str
    audience: str
    trust_domain: str
    leeway: float
    max_lifetime: float

    def __post_init__(self) -> None:
        for name in ("issuer", "audience", "trust_domain"):
            value = getattr(self, name)
            if not isinstance(value, str) or not 0 < len(value) <= _MAX_TEXT:
                raise InvalidInput(name, f"must be text of 1 to {_MAX_TEXT} characters")
        SpiffeId(self.trust_domain)  # raises for a name that no trust domain can have

    def principal(self, claims: dict[str, Any]) -> Principal:
        """The caller that these claims name. Raises `Unauthenticated` unless each is there and right.

        Whether the token is valid now is left to `check_time`, which is asked for every use of it.
        """
        try:
            issuer, audience, subject, client_id, token_id, issued, expires = _required(claims)
        except KeyError:
            raise Unauthenticated("claims") from None
        if issuer != self.issuer:
            raise Unauthenticated("issuer")
        # A list is the same as its only member. With strangers in it, one of them could pass the token on to us.
        if audience != self.audience and not (type(audience) is list and audience == [self.audience]):
            raise Unauthenticated("audience")
        if not (
            type(subject) is type(client_id) is type(token_id) is str
            and 0 < len(subject) <= _MAX_TEXT
            and 0 < len(client_id) <= _MAX_TEXT
            and 0 < len(token_id) <= _MAX_TEXT
        ):
            raise Unauthenticated("claims")
        not_before = claims.get("nbf", issued)
        if not (_is_time(issued) and _is_time(expires) and (not_before is issued or _is_time(not_before))):
            raise Unauthenticated("claims")
        if not issued <= expires <= issued + self.max_lifetime:
            raise Unauthenticated("lifetime")
        project, service = _service_of(subject, self.trust_domain)
        return Principal.proved(
            {
                "project": project,
                "service": service,
                "subject": subject,
                "issuer": self.issuer,
                "audience": self.audience,
                "client_id": client_id,
                "token_id": token_id,
                "issued": issued,
                "not_before": not_before if not_before > issued else issued,
                "expires": expires,
                "scopes": _scopes(claims["scope"]) if "scope" in claims else _NO_SCOPES,
                "claims": MappingProxyType(claims),
            }
        )

    def check_time(self, principal: Principal, now: float) -> None:
        """Return when the token is valid now. Raises `Unauthenticated`."""
        if now >= principal.expires + self.leeway:
            raise Unauthenticated("expired")
        if principal.not_before > now + self.leeway:
            raise Unauthenticated("not yet valid")


@functools.lru_cache(maxsize=4096)
def _service_of(subject: str, trust_domain: str) -> tuple[Project, ServiceName]:
    # Only subjects of proved tokens get here, so a stranger cannot fill the cache.
    try:
        identity = SpiffeId.parse(subject)
    except InvalidInput:
        raise Unauthenticated("subject") from None
    project, service = identity.project, identity.service
    # One spelling only, or two subjects in a log would be one service.
    if str(identity) != subject or identity.trust_domain != trust_domain or project is None or service is None:
        raise Unauthenticated("subject")
    return project, service


def _is_time(value: object) -> bool:
    # By exact type: True is an int, and a string that looks like a number is not one (RFC 7519, section 2). NaN and
    # infinity lie within no bounds.
    return (type(value) is int or type(value) is float) and 0 <= value < _EPOCH_END


def _scopes(value: object) -> frozenset[str]:
    if type(value) is not str or len(value) > _MAX_TEXT:
        raise Unauthenticated("claims")
    return frozenset(value.split())
