"""A large object goes through with flat memory, in a process of its own so that nothing else is counted."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

import azure_bed
import s3_bed
import testbed

PROGRAM = """
import asyncio, gc, os, sys
from pathlib import Path
from kmp_storage.bucket.cloud import CloudBucket
from kmp_storage.bucket.s3 import S3Bucket

MIB = 1 << 20
CHUNK = os.urandom(MIB)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def content(count):
    for _ in range(count):
        yield CHUNK

async def main(url, project, count):
    kind = CloudBucket if url.startswith("az") else S3Bucket
    async with kind(url, project=project) as bucket:
        await bucket.put("warm", content(20))
        async for _ in bucket.stream("warm"):
            pass
        gc.collect()
        before = highest = resident()
        got = 0

        async def watch():
            nonlocal highest
            while True:
                highest = max(highest, resident())
                await asyncio.sleep(0.002)

        watching = asyncio.create_task(watch())
        await bucket.put("large", content(count))
        put = highest - before
        highest = before
        async for chunk in bucket.stream("large"):
            got += len(chunk)
        watching.cancel()
        assert got == count * MIB
        print(put // MIB, (highest - before) // MIB)

asyncio.run(main(*sys.argv[1:3], int(sys.argv[3])))
"""
GROWTH_MIB = 64
MIB_OF_CONTENT = 1024 if os.environ.get("KMP_TEST_LARGE") else 200


@pytest.mark.parametrize("server", ["s3", "azurite"])
async def test_memory_stays_flat_while_a_large_object_goes_up_and_down(
    server: str, request: pytest.FixtureRequest
) -> None:
    running: testbed.Server = request.getfixturevalue(server)
    async with {"s3": s3_bed, "azurite": azure_bed}[server].own_project(running) as project:
        await goes_up_and_down(project.url(), project.name)


async def goes_up_and_down(url: str, project: str) -> None:
    arguments = (sys.executable, "-c", PROGRAM, url, project, str(MIB_OF_CONTENT))
    process = await asyncio.create_subprocess_exec(
        *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    put, get = map(int, out.split())
    assert put < GROWTH_MIB, f"a put of {MIB_OF_CONTENT} MiB grew by {put} MiB"
    assert get < GROWTH_MIB, f"a get of {MIB_OF_CONTENT} MiB grew by {get} MiB"
