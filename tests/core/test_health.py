"""Probes tell the truth, in time, and nothing to strangers."""

from __future__ import annotations

import asyncio
import json

import pytest

from kmp_core.errors import Unavailable
from kmp_core.health import Health, HealthApp


async def fine() -> None: ...


async def broken() -> None:
    raise Unavailable("redis://app:hunter2@cache/0 is down")


@pytest.fixture
def health() -> Health:
    health = Health()
    health.mark("ready")
    return health


async def get(app, path: str, **scope) -> tuple[int, dict]:
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        pytest.fail("a probe has no body")

    await app({"type": "http", "path": path, "root_path": "", **scope}, receive, send)
    assert dict(sent[0]["headers"])[b"content-type"] == b"application/json"
    return sent[0]["status"], json.loads(sent[1]["body"])


async def test_liveness_is_the_process_alone(health):
    health.add("db", broken)
    for phase in ("starting", "ready", "draining"):
        health.mark(phase)
        assert (await get(health.app, "/livez"))[0] == 200


async def test_readiness_is_off_before_the_start_and_during_the_drain():
    health = Health()
    health.add("db", fine)
    statuses = []
    for phase in ("starting", "ready", "draining"):
        health.mark(phase)
        statuses.append((await get(health.app, "/readyz"))[0])
    assert statuses == [503, 200, 503]


async def test_startup_stays_good_once_it_was():
    health = Health()
    statuses = [(await get(health.app, "/startupz"))[0]]
    for phase in ("ready", "draining"):
        health.mark(phase)
        statuses.append((await get(health.app, "/startupz"))[0])
    assert statuses == [503, 200, 200]


async def test_a_failing_check_unreadies_and_tells_no_message(health):
    health.add("db", broken)
    status, body = await get(health.app, "/readyz")
    assert status == 503
    assert body["checks"]["db"]["error"] == "Unavailable"
    assert "hunter2" not in json.dumps(body)


async def test_an_optional_check_that_fails_degrades_and_leaves_it_ready(health):
    health.add("cache", broken, optional=True)
    health.add("db", fine)
    status, body = await get(health.app, "/readyz")
    assert (status, body["status"]) == (200, "degraded")
    health.add("db", broken)
    assert (await get(health.app, "/readyz"))[0] == 503


async def test_a_check_that_hangs_fails_at_its_deadline(health):
    health.add("db", lambda: asyncio.sleep(3600), timeout="20ms")
    status, body = await get(health.app, "/readyz")
    assert (status, body["checks"]["db"]["error"]) == (503, "DeadlineExceeded")


async def test_a_check_that_hears_no_cancellation_fails_too_and_is_not_joined_by_another():
    asked = 0
    free = asyncio.Event()

    async def deaf():
        nonlocal asked
        asked += 1
        while not free.is_set():
            try:
                await free.wait()
            except asyncio.CancelledError:
                continue

    health = Health()
    health.mark("ready")
    health.add("deaf", deaf, timeout=0.01)
    for _ in range(2):
        report = await health.readiness()
        assert report.checks["deaf"].error == "DeadlineExceeded"
    assert asked == 1
    free.set()
    assert (await health.readiness()).healthy
    await health.readiness()
    assert asked == 2


async def test_a_check_that_was_cancelled_inside_is_a_failure_and_not_ours():
    async def cancelled():
        raise asyncio.CancelledError

    health = Health()
    health.mark("ready")
    health.add("cancelled", cancelled)
    assert (await health.readiness()).checks["cancelled"].error == "CancelledError"


async def test_checks_run_at_the_same_time(health):
    everybody = asyncio.Barrier(5)

    async def meet() -> None:
        await everybody.wait()

    for number in range(5):
        health.add(f"db{number}", meet, timeout="10s")
    assert (await get(health.app, "/readyz"))[0] == 200


async def test_a_drain_that_begins_while_checks_run_counts(health):
    async def drain_now() -> None:
        health.mark("draining")

    health.add("db", drain_now)
    assert (await get(health.app, "/readyz"))[0] == 503


async def test_a_check_can_be_taken_away(health):
    health.add("db", broken)
    health.remove("db")
    assert (await get(health.app, "/readyz"))[0] == 200


async def test_the_endpoints_work_below_a_mount_and_as_a_middleware(health):
    assert (await get(health.app, "/health/readyz", root_path="/health"))[0] == 200
    assert (await get(health.app, "/elsewhere"))[0] == 404
    passed = []

    async def app(scope, receive, send):
        passed.append(scope["path"])

    middleware = HealthApp(health, app)
    assert (await get(middleware, "/livez"))[0] == 200
    await middleware({"type": "http", "path": "/flights", "root_path": ""}, None, None)
    await middleware({"type": "websocket", "path": "/livez"}, None, None)
    assert passed == ["/flights", "/livez"]
