"""Passwords, keys and certificates from wherever the platform keeps them, and never in an error, a log or a trace.

    store = await service.get(SecretStore)
    password = await store.get("database-password")
    connect(password=password.reveal())

    async for certificate in store.watch("tls.crt"):      # now, and again whenever it is rotated
        reload(certificate.reveal_bytes())

`KMP_CORE_SECRETS_URL` selects the provider: `env:` (default) reads variables `KMP_SECRET_…`, `file:///etc/secrets` a
mounted directory.
"""

from __future__ import annotations

import hmac
import re
from abc import abstractmethod
from collections.abc import AsyncIterator
from typing import Any, NoReturn, Protocol, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from kmp_core.capability import capability
from kmp_core.deadlines import Timeout
from kmp_core.errors import ConfigurationError, Fault, InvalidInput, KmpError, NotFound
from kmp_core.resource import Resource

__all__ = ["Secret", "SecretNotFound", "SecretStore", "check_secret_name"]

_MASK = "**********"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", re.ASCII)


class Secret:
    """A value that shows itself only to `reveal()`: not to `repr`, `str`, `format`, JSON, pickling or a log.

    Two secrets are equal when their values are; the comparison takes the same time wherever they differ.
    """

    __slots__ = ("_value", "name")

    name: str

    def __init__(self, value: str | bytes, *, name: str = "secret") -> None:
        self._value = value.encode() if isinstance(value, str) else bytes(value)
        self.name = name

    def reveal(self) -> str:
        """The value as text, without the line end that editors and `echo` leave behind. Hand it to a driver, not a log.

        Raises `InvalidInput` for a value that is not UTF-8: that one is for `reveal_bytes`.
        """
        try:
            text = self._value.decode()
        except UnicodeDecodeError:
            text = None
        if text is None:  # outside the handler: the error there holds the value
            raise InvalidInput(self.name, "is not text; take reveal_bytes()", key=self.name)
        return text.removesuffix("\n").removesuffix("\r")

    def reveal_bytes(self) -> bytes:
        """The value as it was stored, to the last byte."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"Secret({_MASK!r}, name={self.name!r})"

    def __str__(self) -> str:
        return _MASK

    def __format__(self, spec: str) -> str:
        return format(_MASK, spec)

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: hand its name over, and let the other side get() it")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.union_schema(
            [
                core_schema.is_instance_schema(cls),
                core_schema.no_info_after_validator_function(cls, core_schema.str_schema()),
            ],
            serialization=core_schema.to_string_ser_schema(),
        )


class SecretNotFound(NotFound, ConfigurationError):
    """The secret is not where the platform should have put it: `place` names the variable, or the file."""

    def __init__(self, name: str, place: str, *, project: str) -> None:
        KmpError.__init__(self, f"the secret {name} is not there: {place} is missing", project=project, key=name)
        self.faults = (Fault(place, f"is missing, and should hold the secret {name}"),)


@capability("core.secrets", default="env:")
class SecretStore(Resource, Protocol):
    """Where a service's secrets are. Names are letters, digits, `.`, `-` and `_`, as Kubernetes has them."""

    @abstractmethod
    async def get(self, name: str, *, timeout: Timeout = None) -> Secret:
        """The secret as it is now. Raises `NotFound` (here `SecretNotFound`), `InvalidInput` for what is no name."""
        ...

    @abstractmethod
    def watch(self, name: str) -> AsyncIterator[Secret]:
        """The secret as it is now, and then each new value once it is whole. Raises `NotFound` before the first.

        A secret that vanishes, or cannot be read for a while, keeps its last value, and a warning is logged.
        """
        ...


def check_secret_name(name: str) -> str:
    """Return the name, or raise `InvalidInput`: a name is never a path."""
    if _NAME.fullmatch(name) is None:
        problem = "must be 1 to 253 letters, digits, '.', '-' or '_', and must not begin with '.' or '-'"
        raise InvalidInput("secret name", problem, example='"database-password"')
    return name
