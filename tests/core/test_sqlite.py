"""The SQLite engine of embedded providers: transactions, deadlines, cancellation, several processes."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from kmp_core.deadlines import deadline
from kmp_core.errors import ConfigurationError, DeadlineExceeded, LifecycleError
from kmp_core.project import Project
from kmp_core.sqlite import Database, database_path
from kmp_core.testing import fork

ACME = Project("acme")
SCHEMA = ["CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT) STRICT"]
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"


@pytest.fixture(params=["file", "memory"])
def path(request, tmp_path) -> Path | None:
    return tmp_path / "acme" / "notes.db" if request.param == "file" else None


@contextlib.asynccontextmanager
async def opened(path: Path | None, migrations=SCHEMA):
    database = Database(path, project=ACME, capability="storage.notes", migrations=migrations)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def add(text: str):
    return lambda c: c.execute("INSERT INTO note (text) VALUES (?)", (text,))


def texts(connection: sqlite3.Connection) -> list[str]:
    return [text for (text,) in connection.execute("SELECT text FROM note ORDER BY id")]


async def test_a_write_is_committed_when_the_work_returns(path):
    async with opened(path) as database:
        await database.write(add("a"))
        assert await database.read(texts) == ["a"]


async def test_a_write_is_rolled_back_when_the_work_raises(path):
    def fail(connection):
        add("a")(connection)
        raise ValueError("no")

    async with opened(path) as database:
        with pytest.raises(ValueError, match="no"):
            await database.write(fail)
        assert await database.read(texts) == []
        await database.write(add("b"))
        assert await database.read(texts) == ["b"]


async def test_a_deadline_interrupts_and_rolls_back(path):
    def slow(connection):
        add("a")(connection)
        connection.execute(ENDLESS)

    async with opened(path) as database:
        with pytest.raises(DeadlineExceeded) as raised:
            await database.write(slow, timeout="50ms")
        assert not raised.value.outcome_unknown
        assert await database.read(texts) == []
        await database.write(add("b"))


async def test_work_that_ends_after_its_time_is_rolled_back_even_where_no_statement_was_interrupted(path):
    def late(connection):
        add("a")(connection)
        time.sleep(0.1)  # no statement runs when the time is over

    async with opened(path) as database:
        with pytest.raises(DeadlineExceeded):
            await database.write(late, timeout="20ms")
        assert await database.read(texts) == []


async def test_any_error_of_a_statement_whose_time_is_over_is_a_deadline(path):
    """An interrupt that meets the making of a virtual table comes out as SQLite's general error."""

    def late(connection):
        add("a")(connection)
        time.sleep(0.1)
        connection.execute("SELECT * FROM nowhere")

    async with opened(path) as database:
        with pytest.raises(DeadlineExceeded):
            await database.write(late, timeout="20ms")
        assert await database.read(texts) == []


async def test_the_tasks_deadline_counts_too(path):
    async with opened(path) as database:
        with pytest.raises(DeadlineExceeded):
            async with deadline("50ms"):
                await database.read(lambda c: c.execute(ENDLESS).fetchall())
        assert await database.read(texts) == []


async def test_work_that_waits_for_its_turn_is_given_up_at_once(path):
    """The one writing thread is busy with another's work, which its caller goes on waiting for."""
    begun, release, ran = threading.Event(), threading.Event(), []

    def busy(connection):
        begun.set()
        assert release.wait(30)
        add("busy")(connection)

    async with opened(path) as database:
        first = asyncio.create_task(database.write(busy))
        await asyncio.to_thread(begun.wait)
        with pytest.raises(DeadlineExceeded):
            await database.write(lambda c: ran.append("late"), timeout="20ms")
        second = asyncio.create_task(database.write(lambda c: ran.append("cancelled")))
        await asyncio.sleep(0.01)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        release.set()
        await first
        await database.write(lambda c: ran.append("next"))
    assert ran == ["next"]


async def test_cancellation_at_any_point_leaves_the_connection_clean(path):
    def work(connection):
        add("x")(connection)
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) SELECT count(*) FROM n"
        )
        add("y")(connection)

    async with opened(path) as database:
        for step in range(60):
            task = asyncio.create_task(database.write(work))
            await asyncio.sleep(step * 0.0002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            found = await database.read(texts)
            assert found.count("x") == found.count("y"), "half of a transaction was kept"
        before = len(await database.read(texts))
        await database.write(work)
        assert len(await database.read(texts)) == before + 2


async def test_a_cancellation_while_the_deadline_is_being_enforced_is_not_lost(path):
    begun, release = threading.Event(), threading.Event()

    def stubborn(connection):
        begun.set()
        release.wait(30)  # hears no interrupt

    async with opened(path) as database:
        task = asyncio.create_task(database.write(stubborn, timeout="500ms"))
        assert await asyncio.to_thread(begun.wait, 30)
        (running,) = database._jobs._running
        async with asyncio.timeout(30):
            while not running.job._abandoned:  # noqa: ASYNC110 - until the work is being interrupted, in vain
                await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.sleep(0)
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_stream_reads_one_snapshot_in_chunks_beside_writers(path):
    async with opened(path) as database:
        await database.write(
            lambda c: c.executemany("INSERT INTO note (text) VALUES (?)", [(str(i),) for i in range(10)])
        )
        seen = []
        async with contextlib.aclosing(database.stream("SELECT text FROM note ORDER BY id", chunk=4)) as chunks:
            async for rows in chunks:
                seen.append(len(rows))
                await database.write(add("meanwhile"))
        assert seen == [4, 4, 2]


async def test_a_stream_that_is_left_early_or_cancelled_gives_its_connection_back(tmp_path):
    async with opened(tmp_path / "n.db") as database:
        await database.write(lambda c: c.executemany("INSERT INTO note (text) VALUES (?)", [("x",)] * 10))
        for _ in range(10):
            async with contextlib.aclosing(database.stream("SELECT text FROM note", chunk=1)) as chunks:
                await anext(chunks)
            with pytest.raises(DeadlineExceeded):
                async with contextlib.aclosing(database.stream(ENDLESS, timeout="5ms")) as chunks:
                    await anext(chunks)
        assert len(database._connections) <= 3
        # A snapshot that was left open would keep the log from being emptied.
        with contextlib.closing(sqlite3.connect(tmp_path / "n.db")) as other:
            busy, _, _ = other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0


async def test_closing_interrupts_what_is_running_and_tells_its_caller(path):
    async with opened(path) as database:
        calls = [asyncio.create_task(database.write(lambda c: c.execute(ENDLESS))) for _ in range(3)]
        async with asyncio.timeout(30):
            while not any(running.job._connection for running in database._jobs._running):  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        async with deadline("10s"):
            await database.close()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [LifecycleError] * 3


async def test_a_file_s_schema_is_not_trusted(path):
    """A view or trigger that somebody planted in a file may call nothing that reaches beyond it."""
    async with opened(path) as database:
        for ask in (database.read, database.write):
            assert await ask(lambda c: c.execute("PRAGMA trusted_schema").fetchone()) == (0,)


async def test_use_before_open_after_close_and_a_second_open_are_refused(path):
    database = Database(path, project=ACME, capability="storage.notes", migrations=SCHEMA)
    with pytest.raises(LifecycleError, match="not open"):
        await database.read(texts)
    await database.open()
    with pytest.raises(LifecycleError):
        await database.open()
    await database.close()
    await database.close()
    for call in (database.read(texts), database.write(texts), database.open()):
        with pytest.raises(LifecycleError):
            await call
    with pytest.raises(LifecycleError):
        await anext(database.stream("SELECT 1"))


async def test_a_forked_child_is_refused_and_does_the_parents_file_no_harm(path):
    async with opened(path) as database:
        await database.write(add("before"))

        def child() -> None:
            for call in (database.write(add("child")), database.read(texts)):
                with pytest.raises(LifecycleError, match="after the fork"):
                    call.send(None)
            with pytest.raises(StopIteration):
                database.close().send(None)

        assert fork(child) == 0
        await database.write(add("after"))
        assert await database.read(texts) == ["before", "after"]


WRITER = """
    import asyncio, sys
    from pathlib import Path
    from kmp_core.project import Project
    from kmp_core.sqlite import Database

    async def main(path, count):
        database = Database(path, project=Project("acme"), capability="storage.notes", migrations={schema!r})
        await database.open()
        for i in range(count):
            await database.write(lambda c: c.execute(
                "INSERT INTO note (text) SELECT coalesce(max(CAST(text AS INTEGER)), 0) + 1 FROM note"), timeout="20s")
        await database.close()

    asyncio.run(main(Path(sys.argv[1]), 40))
"""


async def test_several_processes_create_one_file_at_once_and_lose_no_write(tmp_path):
    path = tmp_path / "acme" / "shared.db"
    program = textwrap.dedent(WRITER.format(schema=SCHEMA))
    command = [sys.executable, "-c", program, str(path)]
    processes = [await asyncio.to_thread(subprocess.Popen, command, stderr=subprocess.PIPE) for _ in range(3)]
    for process in processes:
        _, errors = await asyncio.to_thread(process.communicate, timeout=100)
        assert process.returncode == 0, errors
    async with opened(path) as database:
        assert await database.read(texts) == [str(i) for i in range(1, 121)]


HOLDER = """
    import sqlite3, sys
    connection = sqlite3.connect(sys.argv[1], isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    print("held", flush=True)
    sys.stdin.readline()
"""


async def test_waiting_for_another_process_counts_against_the_deadline(tmp_path):
    path = tmp_path / "shared.db"
    async with opened(path) as database:
        holder = subprocess.Popen(  # noqa: ASYNC220 - starting takes no time
            [sys.executable, "-c", textwrap.dedent(HOLDER), str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert holder.stdout is not None
            assert await asyncio.to_thread(holder.stdout.readline) == "held\n"
            with pytest.raises(DeadlineExceeded):
                await database.write(add("a"), timeout="100ms")
            assert await database.read(texts, timeout="10s") == []  # readers are not kept
            waiting = asyncio.create_task(database.write(add("b"), timeout="30s"))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        finally:
            await asyncio.to_thread(holder.communicate, "\n")
        await waiting
        assert await database.read(texts) == ["b"]


async def test_a_killed_process_leaves_what_it_committed_and_nothing_else(tmp_path):
    path = tmp_path / "n.db"
    program = f"""
        import asyncio, os, signal
        from pathlib import Path
        from kmp_core.project import Project
        from kmp_core.sqlite import Database
        async def main():
            path = Path({str(path)!r})
            database = Database(path, project=Project("acme"), capability="storage.notes", migrations={SCHEMA!r})
            await database.open()
            await database.write(lambda c: c.execute("INSERT INTO note (text) VALUES ('kept')"))
            def half(c):
                c.execute("INSERT INTO note (text) VALUES ('lost')")
                os.kill(os.getpid(), signal.SIGKILL)
            await database.write(half)
        asyncio.run(main())
    """
    killed = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", textwrap.dedent(program)], check=False)
    assert killed.returncode == -9
    async with opened(path) as database:
        assert await database.read(texts) == ["kept"]


async def test_closing_leaves_one_file_even_where_work_returned_a_cursor(tmp_path):
    async with opened(tmp_path / "n.db") as database:
        await database.write(add("a"))
        await database.read(lambda c: c.execute("SELECT text FROM note"))
    assert [file.name for file in tmp_path.iterdir()] == ["n.db"]


async def test_migrations_are_applied_once_each_in_order(tmp_path):
    path = tmp_path / "n.db"
    async with opened(path) as database:
        await database.write(add("old"))
    newer = [*SCHEMA, "ALTER TABLE note ADD COLUMN extra TEXT DEFAULT 'semi;colon'; UPDATE note SET text = 'new'"]
    for _ in range(2):
        async with opened(path, newer) as database:
            assert await database.read(lambda c: c.execute("SELECT text, extra FROM note").fetchall()) == [
                ("new", "semi;colon")
            ]


async def test_work_in_memory_may_run_at_once(tmp_path):
    async with opened(None) as database:
        database.run(add("a"))
        assert database.run(texts) == ["a"]
    async with opened(tmp_path / "n.db") as database:
        with pytest.raises(LifecycleError, match="memory"):
            database.run(texts)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("memory:", None),
        ("sqlite:", Path("home/cache.db")),
        ("sqlite:data.db", Path("data.db")),
        ("sqlite:///var/lib/x.db", Path("/var/lib/x.db")),
        ("sqlite:///with%20space/x.db", Path("/with space/x.db")),
    ],
)
def test_a_url_says_where_the_file_is(url, path):
    assert database_path(Path("home"), url, "cache") == path


@pytest.mark.parametrize("url", ["sqlite://data/x.db", "sqlite://x.db", "sqlite://localhost/x.db"])
def test_a_url_with_a_host_is_refused_and_told_its_right_form(url):
    with pytest.raises(ConfigurationError, match=r"url: names a host.*sqlite:///absolute/path or sqlite:relative/path"):
        database_path(Path("home"), url, "cache")


async def test_every_directory_that_is_made_is_its_owners_alone(tmp_path):
    tmp_path.chmod(0o755)
    async with opened(tmp_path / "above" / "acme" / "n.db"):
        pass
    for directory in (tmp_path / "above", tmp_path / "above" / "acme"):
        assert directory.stat().st_mode & 0o777 == 0o700
    assert tmp_path.stat().st_mode & 0o777 == 0o755
