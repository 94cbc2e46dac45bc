"""An authority of your own on a laptop or in a test: it registers services, issues their tokens, and can be served.

    authority = DevelopmentAuthority()
    credential = authority.register("skyline", "departures", audiences=["delays"])
    verifier = authority.verifier(audience="delays")
    principal = await verifier.verify(authority.issue(project="skyline", service="departures", audience="delays"))

`authority.app()` serves it over HTTP. It keeps everything in memory, its keys die with the process, and it
refuses to run in production: there the authentication service takes its place behind the same verifier.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import SecretStr

from kmp_core.asgi.problems import ASGIApp
from kmp_core.deadlines import duration
from kmp_core.errors import ConfigurationError, Fault, InvalidInput, PermissionDenied, Unauthenticated
from kmp_core.identity import SpiffeId
from kmp_core.project import Project, ServiceName
from kmp_core.tokens import StaticKeysVerifier
from kmp_core.tokens.signing import Algorithm, SigningKey

__all__ = ["Credential", "DevelopmentAuthority"]

_MAX_AUDIENCE = 255


@dataclass(frozen=True, slots=True)
class Credential:
    """What a service proves itself to the authority with. The secret shows in no repr."""

    client_id: str
    """`<project>/<service>`: no colon, which Basic authentication could not carry (RFC 7617, section 2)."""
    secret: SecretStr


@dataclass(frozen=True, slots=True)
class Client:
    """A registered service: of its secret only the digest is kept."""

    project: Project
    service: ServiceName
    audiences: frozenset[str]
    scopes: frozenset[str]
    digest: bytes


class DevelopmentAuthority:
    """Issue RFC 9068 access tokens to services that you register, and refuse audiences that they may not call.

    `issuer` is the address that it is served at. `ttl` is how long a token lives. In the environment `prod` it refuses
    to be made, unless `even_in_production_with_keys_in_memory` says that this is meant.
    """

    def __init__(
        self,
        *,
        issuer: str = "http://localhost:8400",
        trust_domain: str = "kmp.local",
        algorithm: Algorithm = "EdDSA",
        ttl: float | timedelta | str = timedelta(minutes=5),
        environment: str | None = None,
        clock: Callable[[], float] = time.time,
        even_in_production_with_keys_in_memory: bool = False,
    ) -> None:
        if not even_in_production_with_keys_in_memory:
            _refuse_production(environment)
        self.issuer = _issuer(issuer)
        self.trust_domain = SpiffeId(trust_domain).trust_domain
        self.ttl = _ttl(ttl)
        self.clock = clock
        self._clients: dict[str, Client] = {}
        self._keys: dict[str, SigningKey] = {}
        self._current = self._add(SigningKey.create(algorithm))

    def register(
        self, project: str, service: str, *, audiences: Iterable[str] = (), scopes: Iterable[str] = ()
    ) -> Credential:
        """Let a service in, with the audiences it may call and the scopes it may ask for; its old secret ends."""
        owner, name = Project(project), ServiceName(service)
        client_id = f"{owner}/{name}"
        secret = secrets.token_urlsafe(32)
        self._clients[client_id] = Client(
            owner,
            name,
            frozenset(_audience(audience) for audience in _many(audiences, "audiences")),
            frozenset(_scope(scope) for scope in _many(scopes, "scopes")),
            _digest(secret),
        )
        return Credential(client_id, SecretStr(secret))

    def deregister(self, credential: Credential) -> None:
        """Give the service no further tokens. Those it has live until they expire."""
        self._clients.pop(credential.client_id, None)

    def authenticate(self, client_id: str, secret: str) -> Client:
        """The client whose secret this is. Raises `Unauthenticated`, alike for a wrong name and a wrong secret."""
        client = self._clients.get(client_id)
        # A stranger costs the same comparison, so that time does not tell which names exist.
        expected = _digest("") if client is None else client.digest
        right = hmac.compare_digest(expected, _digest(secret))
        if client is None or not right:
            raise Unauthenticated("client", message="The client was refused")
        return client

    def grant(self, client: Client, *, audience: str | None = None, scopes: Iterable[str] | None = None) -> str:
        """A token for a registered client. Raises `PermissionDenied` for what it was not registered for."""
        if audience is None and len(client.audiences) == 1:
            audience = next(iter(client.audiences))
        if audience not in client.audiences:
            raise PermissionDenied("The client may not call this audience", project=client.project, key="audience")
        asked = client.scopes if scopes is None else frozenset(scopes)
        if not asked <= client.scopes:
            raise PermissionDenied("The client does not hold this scope", project=client.project, key="scope")
        return self.issue(project=client.project, service=client.service, audience=audience, scopes=asked)

    def issue(
        self,
        *,
        project: str,
        service: str,
        audience: str,
        ttl: float | timedelta | str | None = None,
        scopes: Iterable[str] = (),
        issued_at: datetime | None = None,
        claims: Mapping[str, Any] | None = None,
    ) -> str:
        """A token for any service, registered or not: for tests, and for whoever holds the authority itself.

        `issued_at` in the past gives an expired token; `claims` replace or add claims, to see a verifier refuse them.
        """
        subject = self.subject(Project(project), ServiceName(service))
        issued = int(self.clock() if issued_at is None else issued_at.timestamp())
        lifetime = self.ttl if ttl is None else _ttl(ttl)
        content: dict[str, Any] = {
            "iss": self.issuer,
            "sub": subject,
            "client_id": f"{project}/{service}",
            "aud": _audience(audience),
            "iat": issued,
            "exp": issued + lifetime,
            "jti": secrets.token_urlsafe(16),
        }
        joined = " ".join(sorted(_scope(scope) for scope in scopes))
        if joined:
            content["scope"] = joined
        return self._current.sign(content | dict(claims or {}))

    def subject(self, project: Project, service: ServiceName) -> str:
        """The SPIFFE ID of a service."""
        return str(SpiffeId.for_service(self.trust_domain, project, service))

    def verifier(self, *, audience: str, clock: Callable[[], float] | None = None) -> StaticKeysVerifier:
        """A verifier for one service, with the keys of now. After `rotate` or `withdraw`, hand it `jwks()` again."""
        return StaticKeysVerifier(
            self.jwks(),
            issuer=self.issuer,
            audience=audience,
            trust_domain=self.trust_domain,
            clock=clock or self.clock,
        )

    def jwks(self) -> dict[str, list[dict[str, str]]]:
        """The public keys, as a JSON Web Key Set."""
        return {"keys": [key.public_jwk() for key in self._keys.values()]}

    def app(self) -> ASGIApp:
        """The authority's endpoints, to be served: `kmp_core.tokens.authority_app` tells which."""
        from kmp_core.tokens.authority_app import authority_app

        return authority_app(self)

    def rotate(self, algorithm: Algorithm | None = None) -> str:
        """Sign with a new key from now on and return its id. Old keys stay in `jwks` until they are withdrawn."""
        self._current = self._add(SigningKey.create(algorithm or self._current.algorithm))
        return self._current.key_id

    def withdraw(self, key_id: str) -> None:
        """Take an old key out of `jwks`. Raises `InvalidInput` for the key that signs now: rotate first."""
        if key_id == self._current.key_id or key_id not in self._keys:
            raise InvalidInput("key_id", "is not an old key of this authority")
        del self._keys[key_id]

    def _add(self, key: SigningKey) -> SigningKey:
        self._keys[key.key_id] = key
        return key


def _refuse_production(environment: str | None) -> None:
    if (environment or os.environ.get("KMP_ENVIRONMENT", "dev")).lower() in ("prod", "production"):
        raise ConfigurationError(
            Fault("KMP_ENVIRONMENT", "is production, and the development authority is not for it", example="dev"),
            heading="The development authority does not start",
        )


def _digest(secret: str) -> bytes:
    # A random secret of 32 bytes needs no slow hash; surrogates cannot come from one, and must not raise either.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def _issuer(issuer: str) -> str:
    plain = issuer.partition("://")[2]
    if not issuer.startswith(("http://", "https://")) or not plain or any(c in plain for c in "/?#@ "):
        raise InvalidInput("issuer", "must be an address without path or credentials", example="http://localhost:8400")
    return issuer


def _ttl(value: float | timedelta | str) -> int:
    seconds = int(duration(value, field="ttl").total_seconds())
    if not 1 <= seconds <= 86_400:
        raise InvalidInput("ttl", "must lie between a second and a day", example='"5m"')
    return seconds


def _many(values: Iterable[str], field: str) -> Iterable[str]:
    if isinstance(values, str):
        raise InvalidInput(field, "must be a list of text, not one text", example=f'["{values}"]')
    return values


def _audience(audience: object) -> str:
    if not isinstance(audience, str) or not 0 < len(audience) <= _MAX_AUDIENCE or not audience.isprintable():
        raise InvalidInput("audience", f"must be text of 1 to {_MAX_AUDIENCE} characters", example='"delays"')
    return audience


def _scope(scope: object) -> str:
    # RFC 6749, section 3.3: printable ASCII without space, quote and backslash.
    if not isinstance(scope, str) or not scope or any(not "!" <= c <= "~" or c in '"\\' for c in scope):
        raise InvalidInput("scope", "must be visible ASCII without quotes", example='"delays:read"')
    return scope
