"""What goes into a bucket and comes out of it in pieces."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

from kmp_core.errors import InvalidInput

__all__ = ["PIECE_BYTES", "apart", "check_chunk", "check_count", "chunks_of", "closing"]

PIECE_BYTES = 4 << 20
"""How much of a content is read or written at a time, so that a call can be left in between."""


def check_count(field: str, value: object, *, lowest: int, highest: int) -> None:
    """Raise `InvalidInput` unless this is a whole number within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise InvalidInput(field, f"must be a whole number from {lowest} to {highest}", example="1000")


async def pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), PIECE_BYTES):
        yield content[start : start + PIECE_BYTES]


def chunks_of(content: object, key: str) -> AsyncIterator[bytes]:
    if isinstance(content, bytes):
        return pieces(content)
    if isinstance(content, AsyncIterable):
        return aiter(content)
    problem = f"must be bytes or an async iterable of bytes, not {type(content).__name__}"
    raise InvalidInput("content", problem, example='b"text"', key=key)


def check_chunk(chunk: object, key: str) -> None:
    if not isinstance(chunk, bytes):
        raise InvalidInput("content", f"must yield bytes, not {type(chunk).__name__}", example='b"text"', key=key)


@asynccontextmanager
async def closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Close a generator that is left before its end, so that its `finally` runs now and not some day."""
    try:
        yield
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


@contextmanager
def apart(call: AbstractContextManager[object]) -> Iterator[None]:
    """Measure a generator: its span is not current in the consumer's code between two items."""
    context = contextvars.copy_context()
    context.run(call.__enter__)
    try:
        yield
    except GeneratorExit:  # the consumer had enough, which is no failure
        context.run(call.__exit__, None, None, None)
        raise
    except BaseException as error:
        context.run(call.__exit__, type(error), error, error.__traceback__)
        raise
    context.run(call.__exit__, None, None, None)
