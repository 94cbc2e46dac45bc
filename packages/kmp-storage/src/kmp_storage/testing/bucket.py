"""What every bucket promises; derive `TestMyBucket(BucketContract)` and define the fixture `make`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from kmp_core.errors import Conflict, DeadlineExceeded, InvalidInput, NotFound, Unsupported
from kmp_core.testing import Make, ProviderContract, Recorder

__all__ = ["HOSTILE_KEYS", "BucketContract", "pieces"]

HOSTILE_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a/..",
    "..\\a",
    "a\\b",
    "%2e%2e/a",
    "a/%2E%2E/b",
    "%252e%252e/a",
    "%25252e./a",
    "..%2fa",
    "a%2Fb",
    "a%5cb",
    "a%00b",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "a\x85b",
    "\ud800",
    "x" * 1025,
    "é" * 513,
    7,
    None,
    b"a",
]
"""Keys that some store, proxy or file system could read as a way out."""

_PLAIN_KEYS = [
    "a",
    "A",
    "a/b",
    "a/b/c",
    "a-b",
    "a.b",
    "a b",
    "...",
    ".hidden",
    "a..b",
    "100%",
    "%41",
    "x" * 1024,
    "é",
    "e\u0301",
    "ø",
    "\uffee",
    "𝄞",
    "CON",
    "index.db",
    "objects/incoming",
    "'; DROP TABLE object",
]


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    """An async iterable of these."""
    for content in contents:
        yield content


async def _keys(entries: AsyncIterator[Any]) -> list[str]:
    return [entry.key async for entry in entries]


async def _each(entries: AsyncIterator[Any]) -> AsyncIterator[str]:
    async for entry in entries:
        yield entry.key


class BucketContract(ProviderContract):
    """The promises of `Bucket` within one process; `SharedBucketContract` adds those over several."""

    abilities: ClassVar[frozenset[str]] = frozenset({"durable", "expiry", "shared", "sign"})
    """What a bucket may declare. A declared ability is tested; a call of one that is not raises `Unsupported`."""

    keeps_files: ClassVar[bool] = False
    """The store behind keeps objects as files: `a` and `a/b` exclude each other, and a segment has at most 255 bytes.

    Such keys are refused typed then, and the suite takes the others."""

    async def write(self, provider: Any) -> None:
        await provider.put("contract", b"1")

    async def wrote(self, provider: Any) -> bool:
        return await provider.head("contract") is not None

    async def test_declares_known_abilities(self, make: Make) -> None:
        assert make().abilities <= self.abilities

    async def test_returns_what_was_put(self, make: Make) -> None:
        content = bytes(range(256)) * 5000
        async with make() as bucket:
            before = datetime.now(UTC)
            entry = await bucket.put(
                "a/b.bin", content, content_type="application/x-test", metadata={"origin": "JFK é"}
            )
            assert await bucket.get("a/b.bin") == content
            assert await bucket.head("a/b.bin") == entry
        assert (entry.key, entry.size, entry.content_type) == ("a/b.bin", len(content), "application/x-test")
        assert entry.checksum in (None, hashlib.sha256(content).hexdigest())
        assert entry.metadata == {"origin": "JFK é"}
        assert entry.modified.utcoffset() == timedelta(0)
        assert abs(entry.modified - before) < timedelta(minutes=5)

    async def test_keeps_empty_objects(self, make: Make) -> None:
        async with make() as bucket:
            assert (await bucket.put("empty", b"")).size == 0
            assert (await bucket.put("nothing", pieces())).size == 0
            assert await bucket.get("empty") == b""
            assert [chunk async for chunk in bucket.stream("nothing")] == []

    async def test_a_put_replaces_content_and_description(self, make: Make) -> None:
        async with make() as bucket:
            first = await bucket.put("key", b"long content", content_type="text/plain", metadata={"a": "b"})
            second = await bucket.put("key", b"short")
            assert await bucket.get("key") == b"short"
            assert first.etag != second.etag
            assert (second.content_type, second.metadata) == (None, {})
            assert await bucket.head("key") == second

    async def test_what_is_not_there_says_so(self, make: Make) -> None:
        async with make() as bucket:
            assert await bucket.head("gone") is None
            assert not await bucket.delete("gone")
            for call in (bucket.get("gone"), anext(bucket.stream("gone")), bucket.copy("gone", "target")):
                with pytest.raises(NotFound) as caught:
                    await call
                assert caught.value.key == "gone"
            assert await _keys(bucket.list()) == []

    async def test_deletes(self, make: Make) -> None:
        async with make() as bucket:
            await bucket.put("key", b"1")
            assert await bucket.delete("key")
            assert await bucket.head("key") is None
            assert not await bucket.delete("key")

    async def test_copies_content_and_description(self, make: Make) -> None:
        async with make() as bucket:
            source = await bucket.put("source", b"content", content_type="text/plain", metadata={"a": "b"})
            target = await bucket.copy("source", "deep/target")
            assert await bucket.get("deep/target") == b"content"
            assert (target.content_type, target.metadata) == (source.content_type, source.metadata)
            await bucket.put("source", b"changed")
            assert await bucket.get("deep/target") == b"content"
            await bucket.copy("source", "source")
            assert await bucket.get("source") == b"changed"

    # Streams

    async def test_streams_both_ways(self, make: Make) -> None:
        parts = [b"%d" % i * 1000 for i in range(50)] + [b""] + [b"end"]
        async with make() as bucket:
            entry = await bucket.put("key", pieces(*parts))
            chunks = [chunk async for chunk in bucket.stream("key", chunk=4096)]
        assert b"".join(chunks) == b"".join(parts)
        assert entry.size == len(b"".join(parts))
        assert all(0 < len(chunk) <= 4096 for chunk in chunks)

    async def test_a_stream_may_be_left_early(self, make: Make) -> None:
        async with make() as bucket:
            await bucket.put("key", b"x" * 100_000)
            async with aclosing(bucket.stream("key", chunk=1000)) as chunks:
                assert await anext(chunks) == b"x" * 1000
            assert await bucket.delete("key")

    async def test_a_reader_gets_one_version_whole(self, make: Make) -> None:
        async with make() as bucket:
            await bucket.put("key", b"a" * 100_000)
            got = b""
            async for chunk in bucket.stream("key", chunk=10_000):
                if not got:
                    await bucket.put("key", b"b" * 100_000)
                got += chunk
            assert got == b"a" * 100_000
            assert await bucket.get("key") == b"b" * 100_000

    async def test_readers_beside_writers_never_miss_or_mix(self, make: Make) -> None:
        async with make() as bucket:
            await bucket.put("key", b"0" * 5000)

            async def write() -> None:
                for number in range(1, 30):
                    await bucket.put("key", b"%d" % (number % 10) * 5000)

            writer = asyncio.ensure_future(write())
            while not writer.done():
                content = await bucket.get("key")
                assert len(content) == 5000
                assert len(set(content)) == 1
            await writer

    async def test_a_failing_source_leaves_what_was_there(self, make: Make) -> None:
        closed = asyncio.Event()

        async def broken() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            raise LookupError("the source broke")

        async def wrong() -> AsyncIterator[Any]:
            try:
                yield b"x"
                yield "text"
            finally:
                closed.set()

        async with make() as bucket:
            await bucket.put("old", b"kept")
            for key in ("old", "new"):
                with pytest.raises(LookupError, match="the source broke"):
                    await bucket.put(key, broken())
                source = wrong()  # held, so that it is not the garbage collector that closes it
                closed.clear()
                with pytest.raises(InvalidInput, match=r"^content: "):
                    await bucket.put(key, source)
                assert closed.is_set(), "the source was left open"
            assert await bucket.get("old") == b"kept"
            assert await _keys(bucket.list()) == ["old"]

    async def test_a_cancelled_put_leaves_what_was_there(self, make: Make) -> None:
        waiting = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield b"x" * 100_000
            waiting.set()
            await asyncio.Event().wait()

        async with make() as bucket:
            await bucket.put("old", b"kept")
            for key in ("old", "new"):
                waiting.clear()
                put = asyncio.ensure_future(bucket.put(key, stuck()))
                await waiting.wait()
                put.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await put
            assert await bucket.get("old") == b"kept"
            assert await _keys(bucket.list()) == ["old"]

    async def test_a_cancelled_put_is_whole_or_nothing_at_any_point(self, make: Make) -> None:
        async with make() as bucket:
            for turns in range(40):
                put = asyncio.ensure_future(bucket.put("key", b"new" * 1000))
                for _ in range(turns):
                    await asyncio.sleep(0.0002)
                put.cancel()
                await asyncio.gather(put, return_exceptions=True)
                if await bucket.head("key") is not None:
                    assert await bucket.get("key") == b"new" * 1000
                    await bucket.delete("key")

    async def test_a_source_that_hangs_meets_the_deadline(self, make: Make) -> None:
        async def stuck() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.Event().wait()

        async with make() as bucket:
            with pytest.raises(DeadlineExceeded):
                await bucket.put("key", stuck(), timeout=0.2)
            assert await bucket.head("key") is None

    @pytest.mark.parametrize("content", ["text", None, 7, [b"a"]])
    async def test_refuses_content_that_is_none(self, make: Make, content: Any) -> None:
        async with make() as bucket:
            with pytest.raises(InvalidInput, match=r"^content: "):
                await bucket.put("key", content)
            assert await bucket.head("key") is None

    # Conditions

    async def test_puts_only_what_is_absent(self, make: Make) -> None:
        async with make() as bucket:
            await bucket.put("key", b"first", if_absent=True)
            with pytest.raises(Conflict) as caught:
                await bucket.put("key", b"second", if_absent=True)
            assert caught.value.key == "key"
            assert await bucket.get("key") == b"first"

    async def test_puts_only_over_what_it_saw(self, make: Make) -> None:
        async with make() as bucket:
            seen = await bucket.put("key", b"first")
            await bucket.put("key", b"second", if_match=seen.etag)
            for key in ("key", "absent"):
                with pytest.raises(Conflict):
                    await bucket.put(key, b"third", if_match=seen.etag)
            assert await bucket.get("key") == b"second"
            with pytest.raises(InvalidInput):
                await bucket.put("key", b"", if_absent=True, if_match=seen.etag)

    async def test_the_same_content_again_is_another_version(self, make: Make) -> None:
        async with make() as bucket:
            seen = await bucket.put("key", b"same")
            await bucket.put("key", b"other")
            await bucket.put("key", b"same")
            with pytest.raises(Conflict):
                await bucket.put("key", b"third", if_match=seen.etag)

    async def test_one_of_many_conditional_puts_wins(self, make: Make) -> None:
        async with make() as bucket:
            puts = (bucket.put("key", b"%d" % i, if_absent=True) for i in range(12))
            outcomes = await asyncio.gather(*puts, return_exceptions=True)
            won = [i for i, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
            assert len(won) == 1
            assert {type(outcome) for outcome in outcomes if isinstance(outcome, BaseException)} == {Conflict}
            assert await bucket.get("key") == b"%d" % won[0]

    # Keys

    @pytest.mark.parametrize("key", HOSTILE_KEYS, ids=ascii)
    async def test_refuses_a_key_that_could_lead_out(self, make: Make, key: Any) -> None:
        async with make() as bucket:
            calls: list[Callable[[], Awaitable[Any]]] = [
                lambda: bucket.put(key, b"1"),
                lambda: bucket.get(key),
                lambda: anext(bucket.stream(key)),
                lambda: bucket.head(key),
                lambda: bucket.delete(key),
                lambda: bucket.copy(key, "target"),
                lambda: bucket.copy("source", key),
                lambda: bucket.sign(key, expires="1m"),
            ]
            for call in calls:
                with pytest.raises(InvalidInput, match=r"^(key|source|target): .*; for example"):
                    await call()
            assert await _keys(bucket.list()) == []

    def holdable(self, keys: list[str]) -> list[str]:
        """Those that the store behind can hold beside each other."""
        if not self.keeps_files:
            return keys
        return [key for key in keys if len(key) < 256 and not any(other.startswith(f"{key}/") for other in keys)]

    async def test_keeps_every_other_key_apart(self, make: Make) -> None:
        keys = self.holdable(_PLAIN_KEYS)
        async with make() as bucket:
            for number, key in enumerate(keys):
                await bucket.put(key, b"%d" % number)
            for number, key in enumerate(keys):
                assert await bucket.get(key) == b"%d" % number
            assert await _keys(bucket.list()) == sorted(keys, key=str.encode)

    async def test_refuses_typed_what_its_store_cannot_hold(self, make: Make) -> None:
        async with make() as bucket:
            await bucket.put("a", b"kept")
            await bucket.put("deep/b", b"kept")
            for key in ("a/b", "deep", "x" * 1024):
                if self.keeps_files:
                    with pytest.raises(InvalidInput, match=r"^key: .*; for example"):
                        await bucket.put(key, b"1")
                else:
                    await bucket.put(key, b"1")
                    await bucket.delete(key)
            assert [await bucket.get(key) async for key in _each(bucket.list())] == [b"kept", b"kept"]

    async def test_lists_by_prefix_in_the_order_of_bytes(self, make: Make) -> None:
        keys = self.holdable(["a", "a-b", "a/b", "a/c/d", "ab", "b", "é/x", "éa", "\uffee", "𝄞"])
        async with make() as bucket:
            for key in reversed(keys):
                await bucket.put(key, b"")
            assert await _keys(bucket.list()) == sorted(keys, key=str.encode)
            assert await _keys(bucket.list("a")) == self.holdable(["a", "a-b", "a/b", "a/c/d", "ab"])
            assert await _keys(bucket.list("a/")) == ["a/b", "a/c/d"]
            assert await _keys(bucket.list("é")) == ["é/x", "éa"]
            assert await _keys(bucket.list("zz")) == []
            assert await _keys(bucket.list(limit=3)) == sorted(keys, key=str.encode)[:3]
            assert await _keys(bucket.list(limit=0)) == []

    async def test_a_list_may_be_left_early_and_entries_are_whole(self, make: Make) -> None:
        async with make() as bucket:
            entries = [await bucket.put(f"k{i}", b"1", metadata={"i": str(i)}) for i in range(5)]
            async with aclosing(bucket.list()) as found:
                assert await anext(found) == entries[0]

    @pytest.mark.parametrize("prefix", ["/", "../", "a//", "a/../", "\x00", "%2e%2e/", 7, None])
    async def test_refuses_a_prefix_that_no_key_has(self, make: Make, prefix: Any) -> None:
        async with make() as bucket:
            with pytest.raises(InvalidInput, match=r"^prefix: "):
                await _keys(bucket.list(prefix))

    @pytest.mark.parametrize(
        "metadata", [{"a b": "c"}, {"": "c"}, {"a": "b\nc"}, {"é": "c"}, {"a": 7}, {"a": "x" * 2048}]
    )
    async def test_refuses_metadata_that_no_header_takes(self, make: Make, metadata: Any) -> None:
        async with make() as bucket:
            with pytest.raises(InvalidInput, match=r"^metadata: "):
                await bucket.put("key", b"1", metadata=metadata)

    @pytest.mark.parametrize("content_type", ["", "text", "text/plain\r\nX-Evil: 1", "téxt/plain", 7])
    async def test_refuses_a_content_type_that_is_none(self, make: Make, content_type: Any) -> None:
        async with make() as bucket:
            with pytest.raises(InvalidInput, match=r"^content_type: "):
                await bucket.put("key", b"1", content_type=content_type)

    # Abilities and telemetry

    async def test_signs_where_declared(self, make: Make) -> None:
        async with make() as bucket:
            await bucket.put("key", b"1")
            if "sign" in bucket.abilities:
                assert (await bucket.sign("key", expires="1m")).startswith("http")
            else:
                with pytest.raises(Unsupported, match="sign") as caught:
                    await bucket.sign("key", expires="1m")
                assert caught.value.instead

    async def test_forgets_what_expires_where_declared(self, make: Make) -> None:
        async with make() as bucket:
            if "expiry" not in bucket.abilities:
                with pytest.raises(Unsupported, match="expiry") as caught:
                    await bucket.put("key", b"1", expires="1d")
                assert caught.value.instead
                assert await bucket.head("key") is None
                return
            kept = await bucket.put("kept", b"1", expires="1d")
            assert kept.expires is not None
            assert kept.expires - kept.modified == timedelta(days=1)
            assert await bucket.head("kept") == kept
            copy = await bucket.copy("kept", "copy")
            assert copy.expires == kept.expires
            assert await bucket.head("copy") == copy
            await bucket.put("gone", b"1", expires="150ms")
            async with asyncio.timeout(20):
                while await bucket.head("gone") is not None:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            with pytest.raises(NotFound):
                await bucket.get("gone")
            assert await _keys(bucket.list()) == ["copy", "kept"]
            assert not await bucket.delete("gone")
            again = await bucket.put("gone", b"2", if_absent=True)
            assert await bucket.head("gone") == again
            await bucket.put("kept", b"2")
            assert [entry.expires async for entry in bucket.list()] == [kept.expires, None, None]

    @pytest.mark.parametrize("expires", ["soon", 0, -1, True])
    async def test_refuses_an_expiry_that_is_none(self, make: Make, expires: Any) -> None:
        async with make() as bucket:
            with pytest.raises(InvalidInput, match=r"^expires: .*; for example"):
                await bucket.put("key", b"1", expires=expires)
            assert await bucket.head("key") is None

    async def test_every_call_is_one_span_and_one_point(self, make: Make) -> None:
        with Recorder() as recorder:
            async with make() as bucket:
                calls: dict[str, Callable[[], Awaitable[Any]]] = {
                    "put": lambda: bucket.put("key", b"1"),
                    "get": lambda: bucket.get("key"),
                    "head": lambda: bucket.head("key"),
                    "copy": lambda: bucket.copy("key", "key2"),
                    "list": lambda: _keys(bucket.list()),
                    "stream": lambda: _consume(bucket.stream("key")),
                    "delete": lambda: bucket.delete("key"),
                }
                for operation, call in calls.items():
                    recorder.clear()
                    await call()
                    assert [s.attributes["db.operation.name"] for s in recorder.spans] == [operation]
                    assert [s.ended and not s.failed for s in recorder.spans] == [True]
                    assert [p.attributes["db.operation.name"] for p in recorder.points] == [operation]

    async def test_a_stream_left_early_is_no_failure(self, make: Make) -> None:
        with Recorder() as recorder:
            async with make() as bucket:
                await bucket.put("key", b"x" * 10_000)
                recorder.clear()
                async with aclosing(bucket.stream("key", chunk=1000)) as chunks:
                    await anext(chunks)
        assert [(span.ended, span.failed) for span in recorder.spans] == [(True, False)]
        assert len(recorder.points) == 1


async def _consume(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        continue
