"""Keys that sign access tokens, for the development authority and for tests of a verifier."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from kmp_core.errors import InvalidInput

__all__ = ["Algorithm", "SigningKey"]

Algorithm = Literal["EdDSA", "ES256", "RS256"]
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_PUBLIC_MEMBERS = {"kty", "crv", "x", "y", "n", "e"}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key and the name that the public part is found under."""

    key_id: str
    algorithm: Algorithm
    private: PrivateKey = field(repr=False)

    @classmethod
    def create(cls, algorithm: Algorithm = "EdDSA", *, key_id: str | None = None) -> Self:
        """A new key with a name that nobody else uses."""
        return cls(key_id or secrets.token_hex(8), algorithm, _create(algorithm))

    def sign(self, claims: Mapping[str, Any], *, kind: str = "at+jwt") -> str:
        """A compact JWS over the claims, with `kind` as its `typ`."""
        return jwt.encode(
            dict(claims), self.private, algorithm=self.algorithm, headers={"typ": kind, "kid": self.key_id}
        )

    def public_jwk(self) -> dict[str, str]:
        """The public part, as it belongs in a key set."""
        public: Any = self.private.public_key()
        members: dict[str, Any] = jwt.get_algorithm_by_name(self.algorithm).to_jwk(public, as_dict=True)
        # By allow-list: what a library adds later can never be private.
        members = {name: value for name, value in members.items() if name in _PUBLIC_MEMBERS}
        return {**members, "kid": self.key_id, "alg": self.algorithm, "use": "sig"}


def _create(algorithm: str) -> PrivateKey:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if algorithm == "RS256":
        return rsa.generate_private_key(public_exponent=65537, key_size=2048)
    raise InvalidInput("algorithm", "is not one that tokens are signed with", example="EdDSA, ES256 or RS256")
