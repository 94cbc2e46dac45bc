"""Verify a signed message against a key that you trust: `content = jws.verify(compact, jwk)`.

This is the strict reading of RFC 7515 that the token verifier stands on, open so that published test vectors, or a
message of your own that is not an access token, can be checked with it. The key fixes the algorithm. A header that
disagrees, brings its own key, asks for an extension, or can be read in two ways is refused, and every refusal is one
`Unauthenticated` whose message tells a stranger nothing; its `reason` is for your log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kmp_core.errors import Unauthenticated
from kmp_core.tokens.jwk import VerificationKey
from kmp_core.tokens.strict_json import decode_base64url, parse_object

__all__ = ["MAX_TOKEN_BYTES", "check_algorithm", "parse_header", "split", "verify"]

MAX_TOKEN_BYTES = 16 * 1024
_MAX_HEADER_BYTES = 2 * 1024
_MAX_KEY_ID = 256

# Each names or carries a key chosen by the sender (RFC 7515, section 4.1). Our keys come from configuration alone.
_FOREIGN_KEYS = frozenset({"jku", "jwk", "x5u", "x5c"})
# "crit" makes an extension mandatory and we have none; "b64" changes what is signed (RFC 7797); "enc" and "zip" would
# make it another thing than a JWS.
_REFUSED = _FOREIGN_KEYS | {"crit", "b64", "enc", "zip"}


def verify(
    compact: str | bytes, jwk: Mapping[str, Any], *, algorithm: str | None = None, symmetric: bool = False
) -> bytes:
    """The content of the message, once its signature is proved to be `jwk`'s.

    `algorithm` says which one an RSA key without `alg` is for (RS256 otherwise). `symmetric=True` also accepts a
    shared secret, which anybody who verifies could have signed with. Raises `Unauthenticated` for a message that is
    not proved, and `InvalidInput` for a key that must not be used for this.
    """
    key = VerificationKey.from_jwk(jwk, algorithm=algorithm, symmetric=symmetric)
    segment, payload, signed, signature = split(_raw(compact))
    header = parse_header(segment)
    if key.key_id is not None and header.get("kid", key.key_id) != key.key_id:
        raise Unauthenticated("key")
    check_algorithm(header, key)
    key.check_or_refuse(signature, signed)
    try:
        return decode_base64url(payload)
    except ValueError:
        raise Unauthenticated("malformed") from None


def split(raw: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Header, payload, signed part and signature of a compact JWS; nothing is decoded yet but the signature."""
    signed, _, encoded = raw.rpartition(b".")
    # A third dot stays in the payload, where base64url refuses it.
    header, dot, payload = signed.partition(b".")
    if not (dot and header and encoded):
        raise Unauthenticated("malformed")
    try:
        return header, payload, signed, decode_base64url(encoded)
    except ValueError:
        raise Unauthenticated("malformed") from None


def _raw(compact: str | bytes) -> bytes:
    # The size is bounded before anything reads it.
    if not isinstance(compact, str | bytes):
        raise Unauthenticated("malformed")
    if len(compact) > MAX_TOKEN_BYTES:
        raise Unauthenticated("too large")
    try:
        return compact.encode("ascii") if isinstance(compact, str) else compact
    except UnicodeEncodeError:
        raise Unauthenticated("malformed") from None


def parse_header(segment: bytes) -> dict[str, Any]:
    """The protected header, refused unless it is plain: see `_REFUSED`, and `kid` is short text where there is one."""
    if len(segment) > _MAX_HEADER_BYTES:
        raise Unauthenticated("too large")
    try:
        header = parse_object(decode_base64url(segment))
    except (ValueError, RecursionError):
        raise Unauthenticated("malformed") from None
    if not _REFUSED.isdisjoint(header):
        raise Unauthenticated("header")
    kid = header.get("kid", "-")
    if not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KEY_ID:
        raise Unauthenticated("key")
    return header


def check_algorithm(header: Mapping[str, Any], key: VerificationKey) -> None:
    """Return when the header names the key's own algorithm."""
    if header.get("alg") != key.algorithm:
        raise Unauthenticated("algorithm")
