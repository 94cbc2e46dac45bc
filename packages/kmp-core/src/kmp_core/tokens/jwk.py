"""A key that may verify signatures, read from a JSON Web Key (RFC 7517, RFC 7518 section 6, RFC 8037).

The key alone fixes the algorithm: what a token's header says about it can only agree or be refused. That ends the
confusion of HMAC with public keys, and `none`, at the root.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm

from kmp_core.errors import InvalidInput, Unauthenticated
from kmp_core.tokens.strict_json import decode_base64url

__all__ = ["VerificationKey"]

Check = Callable[[bytes, bytes], None]
"""Takes signature and signed bytes; returns, or raises `InvalidSignature`."""

_HASHES: dict[str, HashAlgorithm] = {"256": SHA256(), "384": SHA384(), "512": SHA512()}
_CURVES: dict[str, tuple[ec.EllipticCurve, str, int]] = {
    "P-256": (ec.SECP256R1(), "ES256", 32),
    "P-384": (ec.SECP384R1(), "ES384", 48),
    "P-521": (ec.SECP521R1(), "ES512", 66),
}
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_HMAC = ("HS256", "HS384", "HS512")
_EDDSA = ("EdDSA", "Ed25519")  # RFC 8037 and the fully specified name of RFC 9864
_RSA_BITS = range(2048, 8193)  # RFC 7518, section 3.3; the upper bound keeps a check from taking milliseconds
_MAX_KEY_ID = 256


@dataclass(frozen=True, slots=True, eq=False)
class VerificationKey:
    """One prepared key: `check(signature, content)` returns, or raises `InvalidSignature`."""

    key_id: str | None
    algorithm: str
    check: Check
    thumbprint: str
    """RFC 7638: the same for the same key, whatever it is called."""

    @property
    def identity(self) -> tuple[str | None, str, str]:
        """Equal for keys that verify the same tokens."""
        return self.key_id, self.algorithm, self.thumbprint

    def check_or_refuse(self, signature: bytes, content: bytes) -> None:
        """Return when the signature is this key's. Raises `Unauthenticated`."""
        try:
            self.check(signature, content)
        except InvalidSignature:
            raise Unauthenticated("signature") from None

    @classmethod
    def from_jwk(
        cls, jwk: Mapping[str, Any], *, algorithm: str | None = None, symmetric: bool = False
    ) -> VerificationKey:
        """Prepare the key. Raises `InvalidInput` for one that cannot or may not verify signatures.

        The algorithm is the key's `alg`, else `algorithm`, else what type and curve imply (RS256 for RSA). A shared
        secret (`oct`) is accepted only with `symmetric`: whoever can verify with it can also sign.
        """
        _check_purpose(jwk)
        kind = jwk.get("kty")
        chosen = _choose(jwk, algorithm)
        if kind == "RSA":
            return cls._make(jwk, _only(chosen or "RS256", _RSA), _rsa, ("e", "kty", "n"))
        if kind == "EC":
            curve = _member(_CURVES, jwk, "crv")
            return cls._make(jwk, _only(chosen or curve[1], (curve[1],)), _ec, ("crv", "kty", "x", "y"))
        if kind == "OKP":
            if jwk.get("crv") != "Ed25519":
                raise InvalidInput("jwk.crv", "must be Ed25519 for an OKP key", example="Ed25519")
            return cls._make(jwk, _only(chosen or "EdDSA", _EDDSA), _ed25519, ("crv", "kty", "x"))
        if kind == "oct" and symmetric:
            return cls._make(jwk, _only(chosen or "HS256", _HMAC), _hmac, ("k", "kty"))
        if kind == "oct":
            raise InvalidInput("jwk.kty", "is a shared secret, which was not allowed here", example="OKP")
        raise InvalidInput("jwk.kty", "is not a kind of key that verifies", example="OKP, EC or RSA")

    @classmethod
    def _make(
        cls,
        jwk: Mapping[str, Any],
        algorithm: str,
        prepare: Callable[[Mapping[str, Any], str], Check],
        members: tuple[str, ...],
    ) -> VerificationKey:
        try:
            check = prepare(jwk, algorithm)
        except InvalidInput:
            raise
        except ValueError:  # from the library; its message may quote the key
            raise InvalidInput("jwk", "is not a valid key of its type") from None
        canonical = "{" + ",".join(f'"{name}":"{jwk[name]}"' for name in members) + "}"
        return cls(_key_id(jwk), algorithm, check, hashlib.sha256(canonical.encode()).hexdigest())


def _check_purpose(jwk: Mapping[str, Any]) -> None:
    if jwk.get("use", "sig") != "sig":
        raise InvalidInput("jwk.use", "does not allow signatures", example="sig")
    operations = jwk.get("key_ops")
    if operations is None:
        return
    # A private key may carry "sign" too; without "verify", or with a foreign purpose beside it, the key is not ours
    # to verify with (RFC 7517, section 4.3).
    if not isinstance(operations, list | tuple) or "verify" not in operations or set(operations) - {"verify", "sign"}:
        raise InvalidInput("jwk.key_ops", "does not allow to verify signatures", example='["verify"]')


def _choose(jwk: Mapping[str, Any], algorithm: str | None) -> str | None:
    own = jwk.get("alg")
    if own is None:
        return algorithm
    if not isinstance(own, str) or (algorithm is not None and own != algorithm):
        raise InvalidInput("jwk.alg", "is not the algorithm that was asked for", example=algorithm or "EdDSA")
    return own


def _only(algorithm: str, allowed: tuple[str, ...]) -> str:
    if algorithm not in allowed:
        raise InvalidInput("jwk.alg", "does not suit the type of the key", example=allowed[0])
    return algorithm


def _key_id(jwk: Mapping[str, Any]) -> str | None:
    kid = jwk.get("kid")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KEY_ID):
        raise InvalidInput("jwk.kid", f"must be text of 1 to {_MAX_KEY_ID} characters", example='"2026-11"')
    return kid


def _member(table: dict[str, Any], jwk: Mapping[str, Any], name: str) -> Any:
    value = jwk.get(name)
    if not isinstance(value, str) or value not in table:
        raise InvalidInput(f"jwk.{name}", "is not supported", example=next(iter(table)))
    return table[value]


def _bytes(jwk: Mapping[str, Any], name: str, length: int | None = None) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str) or not value.isascii():
        raise InvalidInput(f"jwk.{name}", "must be base64url text")
    try:
        content = decode_base64url(value.encode())
    except ValueError:
        raise InvalidInput(f"jwk.{name}", "must be base64url without padding") from None
    if length is not None and len(content) != length:
        raise InvalidInput(f"jwk.{name}", f"must have {length} bytes, not {len(content)}")
    return content


def _integer(jwk: Mapping[str, Any], name: str, length: int | None = None) -> int:
    return int.from_bytes(_bytes(jwk, name, length))


def _rsa(jwk: Mapping[str, Any], algorithm: str) -> Check:
    modulus = _integer(jwk, "n")
    if modulus.bit_length() not in _RSA_BITS:
        raise InvalidInput("jwk.n", f"must have 2048 to 8192 bits, not {modulus.bit_length()}")
    verify = rsa.RSAPublicNumbers(_integer(jwk, "e"), modulus).public_key().verify
    digest = _HASHES[algorithm[2:]]
    scheme = (
        padding.PKCS1v15()
        if algorithm[0] == "R"
        else padding.PSS(mgf=padding.MGF1(digest), salt_length=digest.digest_size)  # RFC 7518, section 3.5
    )
    return lambda signature, content: verify(signature, content, scheme, digest)


def _ec(jwk: Mapping[str, Any], algorithm: str) -> Check:
    curve, _, size = _CURVES[jwk["crv"]]
    numbers = ec.EllipticCurvePublicNumbers(_integer(jwk, "x", size), _integer(jwk, "y", size), curve)
    verify = numbers.public_key().verify
    scheme = ec.ECDSA(_HASHES["512" if algorithm == "ES512" else algorithm[2:]])

    def check(signature: bytes, content: bytes) -> None:
        if len(signature) != 2 * size:  # RFC 7518, section 3.4: never DER, never shortened
            raise InvalidSignature
        r, s = int.from_bytes(signature[:size]), int.from_bytes(signature[size:])
        verify(encode_dss_signature(r, s), content, scheme)

    return check


def _ed25519(jwk: Mapping[str, Any], algorithm: str) -> Check:
    return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(jwk, "x", 32)).verify


def _hmac(jwk: Mapping[str, Any], algorithm: str) -> Check:
    secret = _bytes(jwk, "k")
    name = f"sha{algorithm[2:]}"
    if len(secret) < int(algorithm[2:]) // 8:  # RFC 7518, section 3.2
        raise InvalidInput("jwk.k", f"is too short for {algorithm}")

    def check(signature: bytes, content: bytes) -> None:
        if not hmac.compare_digest(hmac.digest(secret, content, name), signature):
            raise InvalidSignature

    return check
