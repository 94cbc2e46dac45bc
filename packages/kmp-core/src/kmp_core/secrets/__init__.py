"""Get secrets by name, hear when they rotate, and never show them."""

from kmp_core.secrets.store import Secret, SecretNotFound, SecretStore, check_secret_name

__all__ = ["Secret", "SecretNotFound", "SecretStore", "check_secret_name"]
