"""What the S3 bucket costs against bare obstore, and how much memory one large object takes.

    KMP_PROJECT=... KMP_STORAGE_BUCKET_URL=s3+http://key:secret@127.0.0.1:9000 python benchmarks/bucket.py [--size 1GiB]

Bare is obstore's own put (of a stream, in parts) and get; ours also computes SHA-256 both ways, has the server verify
each part, and compares what comes back. Everything it puts it deletes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import S3Store
from pydantic import ByteSize, TypeAdapter

from kmp_core.errors import KmpError
from kmp_core.project import Project, backend_name
from kmp_storage.bucket import S3Bucket

MIB = 1 << 20
CHUNK = bytes(range(256)) * (MIB // 256)
BUDGET_MIB = 64
SMALL = 200
PROJECT = os.environ.get("KMP_PROJECT", "benchmark")
ADVICE = (
    "no S3 server to measure: start one, and set KMP_PROJECT and "
    "KMP_STORAGE_BUCKET_URL=s3+http://key:secret@127.0.0.1:9000"
)


def bare_store(url: str) -> S3Store:
    parts = urlsplit(url)
    return S3Store(
        parts.path.strip("/") or backend_name(Project(PROJECT), "bucket"),
        endpoint=f"{'http' if parts.scheme == 's3+http' else 'https'}://{parts.netloc.rpartition('@')[2]}",
        region="us-east-1",
        access_key_id=unquote(parts.username or ""),
        secret_access_key=unquote(parts.password or ""),
        client_options={"allow_http": True, "timeout": "1h"},
    )


def resident() -> int:
    """Bytes of resident memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def content(size: int) -> AsyncIterator[bytes]:
    for _ in range(max(1, size // MIB)):
        yield CHUNK


async def timed(work: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await work()
    return time.perf_counter() - began


async def growth(work: Callable[[], Awaitable[object]]) -> float:
    """Mebibytes by which resident memory exceeded what it was before, at its highest, asked every few milliseconds."""
    gc.collect()
    before = highest = resident()
    task = asyncio.ensure_future(work())
    while not task.done():
        highest = max(highest, resident())
        await asyncio.sleep(0.005)
    await task
    return (highest - before) / MIB


async def drain(bucket: S3Bucket, key: str) -> None:
    async for _ in bucket.stream(key):
        continue


async def bare_get(store: S3Store, key: str) -> None:
    async for _ in (await obstore.get_async(store, key)).stream(min_chunk_size=MIB):
        continue


async def many(call: Callable[[int], Awaitable[object]]) -> None:
    for number in range(SMALL):
        await call(number)


async def compare(url: str, size: int, rounds: int) -> None:
    store = bare_store(url)
    async with S3Bucket(url, project=PROJECT) as bucket:
        pairs: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]] = {
            f"put of {size // MIB} MiB, streamed": (
                lambda: obstore.put_async(store, "bench/bare", content(size), chunk_size=8 * MIB, max_concurrency=2),
                lambda: bucket.put("bench/ours", content(size)),
            ),
            f"get of {size // MIB} MiB, streamed": (
                lambda: bare_get(store, "bench/bare"),
                lambda: drain(bucket, "bench/ours"),
            ),
            f"{SMALL} puts of 1 KiB": (
                lambda: many(lambda n: obstore.put_async(store, f"bench/small{n}", CHUNK[:1024])),
                lambda: many(lambda n: bucket.put(f"bench/small{n}", CHUNK[:1024])),
            ),
            f"{SMALL} gets of 1 KiB": (
                lambda: many(lambda n: bare_get(store, f"bench/small{n}")),
                lambda: many(lambda n: bucket.get(f"bench/small{n}")),
            ),
        }
        try:
            # First, while nothing has been allocated that could be used again.
            put = await growth(lambda: bucket.put("bench/ours", content(size)))
            get = await growth(lambda: drain(bucket, "bench/ours"))
            print(f"memory: put grew by {put:.0f} MiB, get by {get:.0f} MiB (budget {BUDGET_MIB})")
            for name, (bare, ours) in pairs.items():
                times = [(await timed(bare), await timed(ours)) for _ in range(rounds)]
                ratio = statistics.median(b / o for b, o in times)
                print(
                    f"{name}: bare {statistics.median(b for b, _ in times):.2f} s, ours "
                    f"{statistics.median(o for _, o in times):.2f} s, {ratio:.2f} of the bare speed"
                )
        finally:
            async for entry in bucket.list("bench/"):
                await bucket.delete(entry.key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="256MiB", help="of the large object")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    url = os.environ.get("KMP_STORAGE_BUCKET_URL", "")
    if not url.startswith("s3"):
        print(ADVICE)
        return
    try:
        asyncio.run(compare(url, int(TypeAdapter(ByteSize).validate_python(options.size)), options.rounds))
    except KmpError as error:
        print(f"{ADVICE} ({type(error).__name__}: {error})")


if __name__ == "__main__":
    main()
