"""A URL that may hold a password, and shows it to nobody who does not ask."""

from __future__ import annotations

import re
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

__all__ = ["ConnectionUrl", "redact_url"]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.ASCII)
_QUERY_VALUE = re.compile(r"(?<=[?&;#])([^=&;#]*)=([^&;#]*)")
_SECRET_NAME = re.compile(r"pass|secret|token|credential|signature|sig\b|key|auth|pwd", re.IGNORECASE)


class ConnectionUrl:
    """Where a backend is and how to log in. `reveal()` gives the text; `str` and `repr` leave the credentials out.

    >>> url = ConnectionUrl("redis://app:hunter2@cache.internal/0")
    >>> url.scheme, str(url)
    ('redis', 'redis://***@cache.internal/0')
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def scheme(self) -> str:
        """What stands before the first colon; it selects the provider."""
        return self._text.partition(":")[0].lower()

    def reveal(self) -> str:
        """The URL with its credentials. Hand it to a driver, never to a log."""
        return self._text

    def __str__(self) -> str:
        return redact_url(self._text)

    def __repr__(self) -> str:
        return f"ConnectionUrl({redact_url(self._text)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConnectionUrl) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __copy__(self) -> ConnectionUrl:
        return self  # it cannot be changed

    def __deepcopy__(self, memo: object) -> ConnectionUrl:
        return self

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a connection URL is not pickled, since it may hold a password; reveal() it yourself")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def validate(value: Any) -> ConnectionUrl:
            if isinstance(value, ConnectionUrl):
                return value
            if not isinstance(value, str):
                raise PydanticCustomError("connection_url_type", "must be text")
            scheme, colon, _ = value.partition(":")
            if not colon or _SCHEME.fullmatch(scheme.lower()) is None:
                raise PydanticCustomError("connection_url_scheme", "must begin with a scheme and a colon")
            if any(c.isspace() or not c.isprintable() for c in value):
                raise PydanticCustomError(
                    "connection_url_space", "must not contain spaces, line ends or control characters"
                )
            return cls(value)

        return core_schema.no_info_plain_validator_function(
            validate, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )


def redact_url(text: str) -> str:
    """The URL without user, password, and the values of query parameters whose names speak of secrets.

    A password is often not percent-encoded as it should be, so everything from the scheme to the last `@` goes.
    """
    scheme, colon, rest = text.partition(":")
    if not colon:
        return text
    if "@" in rest:
        slashes = "//" if rest.startswith("//") else ""
        rest = f"{slashes}***@{rest.rpartition('@')[2]}"
    return f"{scheme}:{_QUERY_VALUE.sub(_redact_parameter, rest)}"


def _redact_parameter(match: re.Match[str]) -> str:
    return f"{match[1]}=***" if _SECRET_NAME.search(match[1]) else match[0]
