"""Take a stream in chunks, whether it is asynchronous or not."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from itertools import islice
from typing import TypeVar

from kmp_core.errors import InvalidInput

__all__ = ["chunked"]

T = TypeVar("T")


async def chunked(items: Iterable[T] | AsyncIterable[T], size: int) -> AsyncIterator[list[T]]:
    """Lists of up to `size` items. Raises `InvalidInput` for what cannot be iterated."""
    if isinstance(items, AsyncIterable):
        chunk: list[T] = []
        async for item in items:
            chunk.append(item)
            if len(chunk) == size:
                yield chunk
                chunk = []
        if chunk:
            yield chunk
        return
    try:
        pending = iter(items)
    except TypeError:
        raise InvalidInput("items", f"must be iterable, not {type(items).__name__}") from None
    while chunk := list(islice(pending, size)):
        yield chunk
