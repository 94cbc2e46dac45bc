"""What goes into a bucket and comes out of it in pieces."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager

from kmp_core.deadlines import deadline
from kmp_core.errors import InvalidInput

__all__ = ["PIECE_BYTES", "apart", "chain", "check_chunk", "check_count", "chunks_of", "closing", "digest", "parts_of"]

_THREAD_BYTES = 256 << 10

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


async def parts_of(
    chunks: AsyncIterator[bytes], size: int, *, key: str, seconds: float | None, backend: str
) -> AsyncGenerator[bytearray, None]:
    """The content in parts of the same size, the last one smaller or none; `seconds` bounds the wait for each chunk."""
    buffer = bytearray()
    while True:
        async with deadline(seconds, what=f"receiving {key!r}", backend=backend):
            chunk = await anext(chunks, None)
        if chunk is None:
            break
        check_chunk(chunk, key)
        rest = memoryview(chunk)
        while rest:
            taken = rest[: size - len(buffer)]
            buffer += taken
            rest = rest[len(taken) :]
            if len(buffer) == size:
                part, buffer = buffer, bytearray()
                yield part
                del part
    if buffer:
        yield buffer


async def chain(first: bytearray, rest: AsyncIterator[bytearray]) -> AsyncIterator[bytearray]:
    """A part that was looked at, and those after it; none is held longer than whoever takes it does."""
    yield first
    del first
    async for part in rest:
        yield part
        del part


async def digest(content: bytes | bytearray) -> bytes:
    """The SHA-256 of a content, beside the event loop where that is worth a thread."""
    # A thread costs more than what it saves the event loop where the content is small.
    if len(content) < _THREAD_BYTES:
        return hashlib.sha256(content).digest()
    return (await asyncio.to_thread(hashlib.sha256, content)).digest()


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
