"""The typed view of a cache: models go in, models come out, and what no longer fits is a miss, never a crash.

Beside it, what every cache asks of its arguments, for the providers of others too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import BaseModel

from kmp_core.deadlines import Timeout, deadline, duration
from kmp_core.errors import InvalidInput
from kmp_storage.cache.codecs import Codec, check_codec, decode, encode
from kmp_storage.cache.secret_fields import secret_field

if TYPE_CHECKING:
    from kmp_storage.protocols import Cache

__all__ = ["TypedCache", "check_key", "check_value", "time_to_live"]

B = TypeVar("B", bound=BaseModel)

_LONGEST_KEY_BYTES = 512
_KEY = '"airport:JFK"'


class TypedCache(Generic[B]):
    """Keep models of one class in a cache, under keys that begin with `prefix`: `cache.of(Airport, ttl="1h")`.

    Values are the model's JSON, or MessagePack with `codec="msgpack"`; a view reads what either wrote. So the versions
    of a service before and after a change read each other's as far as the model allows; one that does not validate
    counts as missing and is loaded again.
    """

    def __init__(
        self, cache: Cache, model: type[B], *, prefix: str | None = None, ttl: Timeout = None, codec: Codec = "json"
    ) -> None:
        _check_model(model)
        check_codec(codec)
        self._cache = cache
        self._model = model
        self._prefix = f"{model.__name__}:" if prefix is None else prefix
        self._ttl = ttl
        self._codec: Codec = codec

    async def get(self, key: str, *, timeout: Timeout = None) -> B | None:
        """The model, or None when there is none, its time is over, or it no longer validates."""
        return self._decode(await self._cache.get(self._prefix + key, timeout=timeout))

    async def set(
        self, key: str, value: B, *, ttl: Timeout = None, if_absent: bool = False, timeout: Timeout = None
    ) -> bool:
        """Store a model for `ttl` (the view's where None); with `if_absent`, False where there was one."""
        ttl = self._ttl if ttl is None else ttl
        return await self._cache.set(
            self._prefix + key, self._encode(value), ttl=ttl, if_absent=if_absent, timeout=timeout
        )

    async def get_or_load(
        self,
        key: str,
        load: Callable[[], Awaitable[B | None]],
        *,
        ttl: Timeout = None,
        negative_ttl: Timeout = None,
        timeout: Timeout = None,
    ) -> B | None:
        """The model, loaded once over all processes where it is missing; see `Cache.get_or_load`."""
        ttl = self._ttl if ttl is None else ttl
        name = self._prefix + key

        async def load_bytes() -> bytes | None:
            value = await load()
            return None if value is None else self._encode(value)

        async def look() -> bytes | None:
            return await self._cache.get_or_load(name, load_bytes, ttl=ttl, negative_ttl=negative_ttl)

        async with deadline(timeout, what=f"get_or_load of {name!r}"):
            content = await look()
            value = self._decode(content)
            if content is None or value is not None:
                return value
            await self._cache.delete(name)
            value = self._decode(await look())
            # Another version may store its own again and again while both run: then this caller loads for itself.
            return await load() if value is None else value

    async def delete(self, *keys: str, timeout: Timeout = None) -> int:
        """Forget them, and return how many there were."""
        return await self._cache.delete(*(self._prefix + key for key in keys), timeout=timeout)

    def _encode(self, value: B) -> bytes:
        if not isinstance(value, self._model):
            problem = f"must be a {self._model.__name__}, not {type(value).__name__}"
            raise InvalidInput("value", problem, example=f"{self._model.__name__}(...)")
        return encode(value, self._codec)

    def _decode(self, content: bytes | None) -> B | None:
        return None if content is None else decode(content, self._model)


def _check_model(model: object) -> None:
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise InvalidInput("model", "is not a pydantic model class", example="cache.of(Airport)")
    secret = secret_field(model)
    if secret is not None:
        problem = f"holds the secret {secret}, of which a cache would keep the mask alone"
        raise InvalidInput("model", problem, example="a class without it; keep secrets in a SecretStore")


def check_key(key: object, field: str = "key") -> None:
    """Raise `InvalidInput` unless this is text of 1 to 512 bytes in UTF-8 without control characters."""
    if not isinstance(key, str):
        raise InvalidInput(field, f"must be text, not {type(key).__name__}", example=_KEY)
    if any(ord(c) < 32 or 127 <= ord(c) < 160 for c in key):
        raise InvalidInput(field, "contains a control character", example=_KEY)
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidInput(field, "contains a lone surrogate, which is no text", example=_KEY) from None
    if not 1 <= size <= _LONGEST_KEY_BYTES:
        raise InvalidInput(field, f"must have 1 to {_LONGEST_KEY_BYTES} bytes, not {size}", example=_KEY)


def check_value(value: object, key: str) -> None:
    """Raise `InvalidInput` for what is not bytes."""
    if not isinstance(value, bytes):
        raise InvalidInput("value", f"must be bytes, not {type(value).__name__}", example='b"text"', key=key)


def time_to_live(ttl: Timeout, field: str = "ttl") -> float | None:
    """Seconds, or None for ever. Raises `InvalidInput` for what is no duration, or not more than zero."""
    if ttl is None:
        return None
    seconds = duration(ttl, field=field).total_seconds()
    if seconds <= 0:
        raise InvalidInput(field, "must be more than zero", example='"5m"; delete forgets at once')
    return seconds
