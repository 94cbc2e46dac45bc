"""Prove who calls: tokens got and tokens verified, and an authority for development.

`jws` checks one signature, `verifier` one access token, `authority` issues them on a laptop and in tests, and
`client_credentials` gets them for a service.
"""

from kmp_core.tokens.principal import Principal
from kmp_core.tokens.verifier import ForgetfulTokenSource, StaticKeysVerifier, TokenSource, TokenVerifier

__all__ = ["ForgetfulTokenSource", "Principal", "StaticKeysVerifier", "TokenSource", "TokenVerifier"]
