"""What an access token must say to be believed: RFC 9068, section 2.2 and 4, with every open choice closed."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from kmp_core.errors import InvalidInput, Unauthenticated
from kmp_core.identity import SpiffeId
from kmp_core.principal import Principal
from kmp_core.project import Project, ServiceName

__all__ = ["ClaimRules"]

_MAX_TEXT = 1024
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

    def principal(self, claims: dict[str, Any], now: float) -> Principal:
        """The caller that these claims name. Raises `Unauthenticated` unless each is there and right."""
        if claims.get("iss") != self.issuer:
            raise Unauthenticated("issuer")
        audience = claims.get("aud")
        # A list is the same as its only member. With strangers in it, one of them could pass the token on to us.
        if audience not in (self.audience, [self.audience]):
            raise Unauthenticated("audience")
        issued, expires = _time(claims, "iat"), _time(claims, "exp")
        not_before = max(issued, _time(claims, "nbf")) if "nbf" in claims else issued
        if not issued <= expires <= issued + self.max_lifetime:
            raise Unauthenticated("lifetime")
        self.check_time(not_before, expires, now)
        subject = _text(claims, "sub")
        project, service = _service_of(subject, self.trust_domain)
        return Principal(
            project=project,
            service=service,
            subject=subject,
            issuer=self.issuer,
            audience=self.audience,
            client_id=_text(claims, "client_id"),
            token_id=_text(claims, "jti"),
            issued=issued,
            not_before=not_before,
            expires=expires,
            scopes=_scopes(claims),
            claims=MappingProxyType(claims),
        )

    def check_time(self, not_before: float, expires: float, now: float) -> None:
        """Return when the token is valid now. Raises `Unauthenticated`."""
        if now >= expires + self.leeway:
            raise Unauthenticated("expired")
        if not_before > now + self.leeway:
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


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    # By exact type: True is an int, and a string that looks like a number is not one (RFC 7519, section 2). NaN and
    # infinity lie within no bounds.
    if (type(value) is int or type(value) is float) and 0 <= value < _EPOCH_END:
        return value
    raise Unauthenticated("claims")


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if type(value) is not str or not 0 < len(value) <= _MAX_TEXT:
        raise Unauthenticated("claims")
    return value


def _scopes(claims: Mapping[str, Any]) -> frozenset[str]:
    value = claims.get("scope", "")
    if type(value) is not str or len(value) > _MAX_TEXT:
        raise Unauthenticated("claims")
    return frozenset(value.split(" ")) if value else frozenset()
