"""The code of the how-to pages does against the real servers what the pages say."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import neo4j as driver
import pytest

import azure_bed
import postgres_bed
import s3_bed
import testbed
from kmp_core.errors import Conflict
from kmp_core.secrets import Secret
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.timescale.provisioning import TimescaleProvisioner

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
RUN = {"timescale", "neo4j", "buckets", "azure-buckets"}
RUN_ELSEWHERE = {"redis", "test-your-provider"}
PASSWORD = "for-this-page-alone"


def run(name: str, changes: dict[str, str]) -> dict[str, Any]:
    """Run all fences of a page, with these addresses in place of those that it writes; what the page then has."""
    code = "\n".join(re.findall(r"```python\n(.*?)```", (PAGES / f"{name}.md").read_text(), re.DOTALL))
    for written, meant in changes.items():
        assert written in code, f"{name}.md has no {written!r}"
        code = code.replace(written, meant)
    page: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, f"{name}.md", "exec"), page)
    return page


def test_every_page_about_a_server_is_run_on_it() -> None:
    about = {
        page.stem
        for page in PAGES.glob("*.md")
        if re.search(r"^from kmp_storage\.(timescale|neo4j|redis|bucket)", page.read_text(), re.MULTILINE)
    }
    assert about == RUN | RUN_ELSEWHERE


async def test_timescale(timescaledb: testbed.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "timescale://skyline@db.internal/skyline?sslmode=verify-full&sslrootcert=/etc/ssl/db-ca.pem": (
            f"timescale://skyline@{timescaledb.address}/skyline?sslmode=disable"
        ),
        f'"timescale://postgres@db.internal/postgres", password="{PASSWORD}"': (
            f'"{postgres_bed.admin_url(timescaledb)}"'
        ),
    }
    monkeypatch.chdir(tmp_path)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_gates.sql").write_text("CREATE TABLE gates (name text)")
    async with TimescaleProvisioner(postgres_bed.admin_url(timescaledb)) as admin:
        try:
            url = await run("timescale", changes)["set_up"]()
            assert url.startswith("timescale://skyline:")
            await admin.set_password("skyline", Secret(PASSWORD))
            await run("timescale", changes)["start"]()
            page = run("timescale", changes)  # a store that was closed does not open again
            async with page["store"] as store:
                time = datetime.now(UTC) - timedelta(days=20)
                delays = [
                    page["Delay"](time=time + timedelta(days=2 * day), flight="UA1", origin="JFK", minutes=float(day))
                    for day in range(3)
                ]
                await page["record"](delays)
                assert [row async for row in store.read(page["Delay"])] == delays
                found = await page["last_month"]()
                first = found.index(0.0)
                assert found[:first] == [None] * first
                assert found[first : first + 5] == [0.0, 0.0, 1.0, 1.0, 2.0]
                assert 30 <= len(found) <= 32
                async with store.connection() as connection:
                    assert await connection.fetch_value("SELECT count(*) FROM gates") == 0
        finally:
            await admin.deprovision("skyline", force=True)


async def test_neo4j(neo4j: testbed.Server) -> None:
    with driver.GraphDatabase.driver(f"bolt://{neo4j.address}", auth=("neo4j", neo4j.password)) as session:
        session.execute_query("MATCH (n) DETACH DELETE n")
        page = run("neo4j", {f"bolt://neo4j:{PASSWORD}@localhost": f"bolt://neo4j:{neo4j.password}@{neo4j.address}"})
        try:
            async with page["store"] as store:
                jfk, lax = page["Airport"](code="JFK"), page["Airport"](code="LAX")
                await store.merge(jfk, lax, page["Route"](source="JFK", target="LAX", miles=2475))
                assert await page["longest"](store, 2000) == [{"source": "JFK", "miles": 2475}]
                assert await page["longest"](store, 3000) == []
                stored = "MATCH (:Airport {code: 'JFK'})-[r:ROUTE {miles: 2475}]->(:Airport {code: 'LAX'}) RETURN r"
                assert len(await store.run(stored)) == 1
        finally:
            session.execute_query("MATCH (n) DETACH DELETE n")


async def test_buckets(s3: testbed.Server, capsys: pytest.CaptureFixture[str]) -> None:
    administrator = s3_bed.admin_url(s3)
    page = run("buckets", {"range(1_000_000)": "range(100_000)"})
    async with VersityProvisioner(administrator) as provisioner:
        try:
            await page["make_project"](administrator)
            assert capsys.readouterr().out == "skyline\n"
            key = await provisioner.provision("skyline", secret=PASSWORD)
            await page["use_bucket"](f"s3+http://{key.name}:{key.secret}@{s3.address}")
            *sizes, signed = capsys.readouterr().out.splitlines()
            assert sum(map(int, sizes)) == sum(len(b"UA%d,JFK,12\n" % number) for number in range(100_000))
            assert signed.startswith(f"http://{s3.address}/skyline/")
            with pytest.raises(Conflict):
                await page["remove_project"](administrator)
        finally:
            await provisioner.deprovision("skyline", force=True)
        await page["make_project"](administrator)
        await page["remove_project"](administrator)


async def test_azure_buckets(azurite: testbed.Server, capsys: pytest.CaptureFixture[str]) -> None:
    page = run("azure-buckets", {"range(1_000_000)": "range(700_000)"})
    async with azure_bed.own_project(azurite) as project:
        await page["use_bucket"](azure_bed.url(azurite, project.token, container=project.name))
        *sizes, refused, last = capsys.readouterr().out.splitlines()
        assert sum(map(int, sizes)) == sum(len(b"UA%d,JFK,12\n" % number) for number in range(700_000))
        assert refused.startswith("CloudBucket does not support a condition on a stream")
        assert last == "somebody else was faster: read it again"
