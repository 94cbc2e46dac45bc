"""Prove who is calling from the token they sent: strict access tokens, checked with keys that you hold.

    verifier = StaticKeysVerifier(
        jwks, issuer="https://auth.acme.example", audience="delays", trust_domain="acme.example"
    )
    principal = await verifier.verify(token)         # or Unauthenticated, which tells a stranger nothing

A token is an RFC 9068 access token of a service: what `kmp_core.tokens.claims` demands of its content, and
`kmp_core.tokens.jws` of its form and signature. `TokenSource` is the other side: where a
client gets the token that it sends.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from hashlib import sha256
from typing import Any, Protocol, cast, runtime_checkable

from cryptography.exceptions import InvalidSignature

from kmp_core.deadlines import duration
from kmp_core.errors import ConfigurationError, Fault, InvalidInput, Unauthenticated
from kmp_core.tokens.claims import ClaimRules
from kmp_core.tokens.jwk import VerificationKey
from kmp_core.tokens.jws import MAX_TOKEN_BYTES, check_algorithm, parse_header, split
from kmp_core.tokens.principal import Principal
from kmp_core.tokens.strict_json import decode_base64url, parse_object

__all__ = ["ForgetfulTokenSource", "StaticKeysVerifier", "TokenSource", "TokenVerifier"]


@runtime_checkable
class TokenVerifier(Protocol):
    """Tells who sent a token."""

    @abstractmethod
    async def verify(self, token: str) -> Principal:
        """The principal that the token proves. Raises `Unauthenticated` for everything that is not a valid token."""


@runtime_checkable
class TokenSource(Protocol):
    """Gives the token to send to a service."""

    @abstractmethod
    async def token(self, audience: str) -> str:
        """A token for `audience` that is valid for a while yet. Raises `Unavailable` when none can be had now."""


@runtime_checkable
class ForgetfulTokenSource(TokenSource, Protocol):
    """A source that keeps tokens and can be told that one was refused, so that the next is a fresh one."""

    @abstractmethod
    def forget(self, audience: str, token: str) -> None:
        """Do not give out this very token again."""


class StaticKeysVerifier:
    """Verify tokens with the keys of a JSON Web Key Set that you hand over, and replace them while requests run.

    A token that was seen before costs a hash: the answer is kept until the token expires, within `cache_size`. A kept
    answer meets expiry, `revoke` and the withdrawal of its key like a new one. `audience` is this service's name at
    the issuer; `leeway` is what clocks may differ (a minute at most); `max_lifetime` bounds from issue to expiry.
    """

    def __init__(
        self,
        keys: Mapping[str, Any] | Iterable[Mapping[str, Any]],
        *,
        issuer: str,
        audience: str,
        trust_domain: str,
        leeway: float | timedelta | str = timedelta(seconds=10),
        max_lifetime: float | timedelta | str = timedelta(hours=24),
        cache_size: int = 10_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.rules = ClaimRules(
            issuer=issuer,
            audience=audience,
            trust_domain=trust_domain,
            leeway=_leeway(leeway),
            max_lifetime=duration(max_lifetime, field="max_lifetime").total_seconds(),
        )
        self._clock = clock
        self._half = max(1, cache_size // 2)
        self._revoked: dict[str, float] = {}
        self._state = _State(_prepare(keys))

    async def verify(self, token: str) -> Principal:
        return self.verify_now(token)

    def verify_now(self, token: str) -> Principal:
        """The same without a loop, since static keys need none."""
        state, now = self._state, self._clock()
        raw = _raw(token)
        digest = sha256(raw).digest()
        known = state.recent.get(digest)
        principal = known or state.older.get(digest) or self._prove(raw, state)
        self.rules.check_time(principal, now)
        if self._revoked and principal.token_id in self._revoked:
            raise Unauthenticated("revoked")
        if known is None:
            state.keep(digest, principal, self._half)
        return principal

    def replace_keys(self, keys: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Trust these keys and no others from now on; a token that a withdrawn key signed is refused at once.

        Raises `ConfigurationError`, and keeps the keys it has, when the new set is damaged or has no usable key.
        """
        prepared = _prepare(keys)
        old = self._state
        if {k: v.identity for k, v in prepared.items()} == {k: v.identity for k, v in old.keys.items()}:
            return
        # A new state rather than a cleared one: a verification under way ends in the old state and leaves no trace.
        self._state = _State(prepared)

    def revoke(self, token_id: str) -> None:
        """Refuse the token with this `jti` from now on; it is remembered for as long as such a token can live."""
        now = self._clock()
        self._revoked = {known: until for known, until in self._revoked.items() if until > now}
        self._revoked[token_id] = now + self.rules.max_lifetime + 2 * self.rules.leeway

    @property
    def key_ids(self) -> frozenset[str]:
        """The ids of the keys that are trusted now."""
        return frozenset(self._state.keys)

    @property
    def cached(self) -> tuple[int, int]:
        """How many proved tokens are remembered, in the recent and in the older generation."""
        return len(self._state.recent), len(self._state.older)

    def _prove(self, raw: bytes, state: _State) -> Principal:
        segment, payload, signed, signature = split(raw)
        key = state.headers.get(segment)
        if key is None:
            header = parse_header(segment)
            _check_type(header)
            key = state.find(header.get("kid"))
            check_algorithm(header, key)
            key.check_or_refuse(signature, signed)
            state.remember(segment, key)
        else:
            # This very header was proved before: only the signature is new.
            try:
                key.check(signature, signed)
            except InvalidSignature:
                raise Unauthenticated("signature") from None
        try:
            claims = parse_object(decode_base64url(payload))
        except (ValueError, RecursionError):
            raise Unauthenticated("malformed") from None
        return self.rules.principal(claims)


class _State:
    """One set of keys with everything that was proved by it."""

    __slots__ = ("headers", "keys", "older", "recent")

    def __init__(self, keys: dict[str, VerificationKey]) -> None:
        self.keys = keys
        self.headers: dict[bytes, VerificationKey] = {}
        self.recent: dict[bytes, Principal] = {}
        self.older: dict[bytes, Principal] = {}

    def find(self, key_id: str | None) -> VerificationKey:
        if key_id is None and len(self.keys) == 1:
            return next(iter(self.keys.values()))
        key = None if key_id is None else self.keys.get(key_id)
        if key is None:
            raise Unauthenticated("key")
        return key

    def keep(self, digest: bytes, principal: Principal, half: int) -> None:
        # Two generations: a full one becomes the older one, which costs nothing, where evicting one by one doubled
        # the price of a look-up.
        if len(self.recent) >= half:
            self.older, self.recent = self.recent, {}
        self.recent[digest] = principal

    def remember(self, header: bytes, key: VerificationKey) -> None:
        # Only proved headers get here, and an issuer has a handful.
        if len(self.headers) >= 256:
            self.headers = {}
        self.headers[header] = key


def _raw(token: str) -> bytes:
    # Before anything else looks at it, the hash included.
    try:
        raw = token.encode("ascii")
    except (AttributeError, UnicodeEncodeError):
        raise Unauthenticated("malformed") from None
    if len(raw) > MAX_TOKEN_BYTES:
        raise Unauthenticated("too large")
    return raw


def _check_type(header: Mapping[str, Any]) -> None:
    # RFC 9068, section 4. An ID token and every other JWT of the same issuer stops here.
    kind = header.get("typ")
    if not isinstance(kind, str) or kind.lower() not in ("at+jwt", "application/at+jwt"):
        raise Unauthenticated("type")


def _leeway(value: float | timedelta | str) -> float:
    seconds = duration(value, field="leeway").total_seconds()
    if seconds > 60:
        raise InvalidInput("leeway", "must not exceed a minute", example='"10s"')
    return seconds


def _prepare(keys: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> dict[str, VerificationKey]:
    entries: object = cast("Mapping[str, Any]", keys).get("keys") if isinstance(keys, Mapping) else keys
    if not isinstance(entries, Iterable) or isinstance(entries, str | bytes | Mapping):
        raise ConfigurationError(Fault("keys", "is not a JSON Web Key Set", example='{"keys": [...]}'))
    found: dict[str, VerificationKey] = {}
    faults: list[Fault] = []
    for number, jwk in enumerate(entries):
        where = f"keys[{number}]"
        # RFC 7517, section 5: kinds of key that one does not know, and keys for other purposes, are passed over.
        if not isinstance(jwk, Mapping):
            faults.append(Fault(where, "is not a JSON Web Key"))
        elif jwk.get("kty") not in ("RSA", "EC", "OKP", "oct") or jwk.get("use", "sig") != "sig":
            continue
        else:
            fault = _add(found, jwk)
            if fault is not None:
                faults.append(Fault(f"{where}{fault.field.removeprefix('jwk')}", fault.problem, example=fault.example))
    if not found and not faults:
        faults.append(Fault("keys", "has no key that can verify a signature"))
    if faults:
        raise ConfigurationError(*faults, heading="The keys cannot be used")
    return found


def _add(found: dict[str, VerificationKey], jwk: Mapping[str, Any]) -> InvalidInput | None:
    if "d" in jwk or jwk.get("kty") == "oct":
        return InvalidInput("jwk", "is a secret key; a verifier needs, and should hold, the public part only")
    try:
        key = VerificationKey.from_jwk(jwk)
    except InvalidInput as error:
        return error
    name = key.key_id or ""
    if name in found:
        return InvalidInput("jwk.kid", "is given to two keys, or to none of several")
    found[name] = key
    return None
