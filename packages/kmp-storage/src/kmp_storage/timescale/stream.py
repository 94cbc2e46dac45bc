"""A source of measurements of one class, turned into rows a chunk at a time."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from kmp_core.errors import InvalidInput
from kmp_core.postgres import Progress
from kmp_storage.series.calls import class_of
from kmp_storage.streams import chunked
from kmp_storage.timescale.codec import TimescaleCodec, timescale_codec_of

__all__ = ["Stream"]


class Stream:
    """Holds one chunk at a time. `progress` tells when each chunk was taken, so that a deadline bounds the chunk.

    Where the source fails, or comes to a row that cannot be kept, the rows just end and `check` raises why: the driver
    never sees the error, which would cost the connection, and with it a caller's transaction.
    """

    def __init__(self, source: Iterable[Any] | AsyncIterable[Any], size: int) -> None:
        self.progress = Progress()
        self._source = source
        self._size = size
        self._taken = 0
        self._codec: TimescaleCodec[Any] | None = None
        self._later: Iterator[list[Any]] | AsyncIterator[list[Any]] = iter(())
        self._first: list[Any] = []
        self._fault: Exception | None = None

    async def begin(self) -> TimescaleCodec[Any] | None:
        """Take the first chunk, which tells the class; None for an empty source."""
        if isinstance(self._source, AsyncIterable):
            self._later = chunked(self._source, self._size)
            self._first = await anext(self._later, [])
        else:
            self._later = self._slices()
            self._first = next(self._later, [])
        if self._first:
            self._codec = timescale_codec_of(class_of(self._first[0], 0))
        return self._codec

    def rows(self) -> Iterator[Sequence[Any]] | AsyncIterator[Sequence[Any]]:
        """All rows, up to one that cannot be had or kept."""
        later = self._later
        if isinstance(later, AsyncIterator):
            return self._as_they_come(later)
        return chain.from_iterable(self._chunks(later))

    def check(self) -> None:
        """Raise what ended the rows before their time: `InvalidInput` naming row and field, or the source's own."""
        if self._fault is not None:
            raise self._fault

    def _chunks(self, later: Iterator[list[Any]]) -> Iterator[list[tuple[Any, ...]]]:
        try:
            for chunk in chain((self._first,), later):
                yield self._encoded(chunk)
        except Exception as error:
            self._fault = error

    async def _as_they_come(self, later: AsyncIterator[list[Any]]) -> AsyncIterator[Sequence[Any]]:
        chunk: list[Any] | None = self._first
        try:
            while chunk is not None:
                for row in self._encoded(chunk):
                    yield row
                # The source's own time is not the server's.
                self.progress.pause()
                chunk = await anext(later, None)
        except Exception as error:
            self._fault = error
        self.progress.step()

    def _encoded(self, chunk: list[Any]) -> list[tuple[Any, ...]]:
        assert self._codec is not None
        self.progress.step()
        self._codec.check_class(chunk, self._taken)
        rows = self._codec.encode(chunk, first_row=self._taken)
        self._taken += len(chunk)
        return rows

    def _slices(self) -> Iterator[list[Any]]:
        source: Any = self._source
        try:
            pending = iter(source)
        except TypeError:
            raise InvalidInput("items", f"must be iterable, not {type(source).__name__}") from None
        while chunk := list(islice(pending, self._size)):
            yield chunk
        self.progress.step()
