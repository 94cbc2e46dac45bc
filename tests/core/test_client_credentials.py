"""A service's own tokens, from an authority in another process: one fetch for all, renewed in time, refusals typed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from kmp_core.deadlines import deadline
from kmp_core.errors import (
    ConfigurationError,
    DeadlineExceeded,
    KmpError,
    LifecycleError,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from kmp_core.http import ClientCredentials, client
from kmp_core.tokens import ForgetfulTokenSource, StaticKeysVerifier, client_credentials


@pytest.fixture(scope="module")
def served(serve: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return serve("authority")


def credentials(served: dict[str, Any], **options: Any) -> ClientCredentials:
    chosen = {"client_id": served["client_id"], "secret": served["secret"], **options}
    return ClientCredentials(f"{served['url']}/token", **chosen)


def verifier(served: dict[str, Any], audience: str) -> StaticKeysVerifier:
    return StaticKeysVerifier(served["jwks"], issuer=served["url"], audience=audience, trust_domain="kmp.local")


async def test_tokens_of_an_authority_in_another_process_verify(served: dict[str, Any]) -> None:
    async with credentials(served) as tokens:
        for audience in ("delays", "archive"):
            principal = await verifier(served, audience).verify(await tokens.token(audience))
            assert (principal.project, principal.service) == ("skyline", "departures")
        await tokens.check()


async def test_audience_that_is_not_allowed_is_permission_denied(served: dict[str, Any]) -> None:
    async with credentials(served) as tokens:
        with pytest.raises(PermissionDenied, match="tower"):
            await tokens.token("tower")
        assert await tokens.token("delays")


async def test_wrong_secret_is_unauthenticated_and_shows_nowhere(served: dict[str, Any]) -> None:
    async with credentials(served, secret="the-wrong-secret") as tokens:
        with pytest.raises(Unauthenticated, match="credential") as caught:
            await tokens.token("delays")
        assert "the-wrong-secret" not in str(caught.value) + repr(tokens.__dict__)
        with pytest.raises(Unauthenticated):
            await tokens.check()


async def test_service_to_service_over_two_other_processes(
    served: dict[str, Any], serve: Callable[..., dict[str, Any]], tmp_path: Any
) -> None:
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(served["jwks"]))
    for issuer, accepted in ((served["url"], True), ("http://localhost:1", False)):
        service = serve("starlette", str(keys), "{}", issuer)
        async with credentials(served) as tokens, client(service["url"], tokens=tokens, audience="delays") as delays:
            if accepted:
                assert (await delays.get("/whoami")).json()["service"] == "departures"
            else:
                with pytest.raises(Unauthenticated):
                    await delays.get("/whoami")


async def test_the_environment_neither_takes_nor_replaces_the_secret(
    served: dict[str, Any], thief: list[bytes]
) -> None:
    async with credentials(served) as tokens:
        assert await verifier(served, "delays").verify(await tokens.token("delays"))
    assert thief == []


class Authority(httpx.AsyncBaseTransport):
    """Counts what is asked, and answers as a test wants."""

    def __init__(self, *answers: Any, delay: float = 0) -> None:
        self.answers = list(answers)
        self.delay = delay
        self.asked: list[str] = []
        self.was_asked, self.may_answer = asyncio.Event(), asyncio.Event()
        self.may_answer.set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        form = parse_qs((await request.aread()).decode())
        self.asked.append(form["audience"][0])
        self.was_asked.set()
        number = len(self.asked)
        await self.may_answer.wait()
        await asyncio.sleep(self.delay)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            status, headers = answer
            return httpx.Response(status, headers=headers, json={})
        if isinstance(answer, bytes):
            return httpx.Response(200, content=answer)
        good = {"access_token": f"t{number}", "token_type": "Bearer", "expires_in": 60}
        return httpx.Response(answer.pop("status", 200), json={**good, **answer} if "error" not in answer else answer)


def scripted(authority: Authority, **options: Any) -> ClientCredentials:
    return ClientCredentials(
        "https://auth.example/token", client_id="a/b", secret="s3cret", transport=authority, **options
    )


class Time:
    """Stands in for the clock of the module."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(client_credentials, "time", clock)
    return clock


async def test_a_hundred_callers_cause_one_fetch_for_each_audience() -> None:
    authority = Authority({}, delay=0.01)
    async with scripted(authority) as tokens:
        found = await asyncio.gather(*(tokens.token(audience) for audience in ["a", "b"] * 50))
    assert sorted(authority.asked) == ["a", "b"]
    assert len(set(found)) == 2


async def test_token_is_kept_until_it_is_nearly_over(clock: Time) -> None:
    authority = Authority({})
    async with scripted(authority) as tokens:
        first = await tokens.token("a")
        clock.now += 41
        assert await tokens.token("a") == first
        assert len(authority.asked) == 1
        clock.now += 18  # 59 of 60 seconds: too late to be given out
        assert await tokens.token("a") != first


async def test_renewal_happens_behind_the_old_token(clock: Time) -> None:
    authority = Authority({}, delay=0.01)
    async with scripted(authority) as tokens:
        first = await tokens.token("a")
        clock.now += 49
        assert await tokens.token("a") == first  # did not wait
        while len(authority.asked) < 2 or await tokens.token("a") == first:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert len(authority.asked) == 2


async def test_old_token_serves_while_the_authority_is_down(clock: Time) -> None:
    authority = Authority({}, (500, {}))
    async with scripted(authority, timeout="500ms") as tokens:
        first = await tokens.token("a")
        clock.now += 49
        for _ in range(5):
            assert await tokens.token("a") == first
            await asyncio.sleep(0.01)
        await tokens.check()
        clock.now += 10
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await tokens.token("a")


async def test_failed_fetch_is_not_repeated_by_every_caller(clock: Time) -> None:
    authority = Authority({"status": 401, "error": "invalid_client"}, {})
    async with scripted(authority) as tokens:
        for _ in range(20):
            with pytest.raises(Unauthenticated):
                await tokens.token("a")
        assert len(authority.asked) == 1
        clock.now += 2
        assert await tokens.token("a")
        await tokens.check()


async def test_authority_that_comes_back_is_used_within_the_call() -> None:
    authority = Authority((503, {"retry-after": "0"}), httpx.ConnectError("refused"), {})
    async with scripted(authority) as tokens:
        assert await tokens.token("a") == "t3"


async def test_authority_that_is_overloaded_says_when() -> None:
    authority = Authority((429, {"retry-after": "30"}))
    async with scripted(authority) as tokens:
        with pytest.raises(Overloaded) as caught:
            await tokens.token("a")
        assert caught.value.retry_after == 30
        with pytest.raises(Overloaded):
            await tokens.token("a")
        assert len(authority.asked) == 1


async def test_fetch_has_a_deadline() -> None:
    async with scripted(Authority({}, delay=60), timeout="50ms") as tokens:
        with pytest.raises(DeadlineExceeded):
            await tokens.token("a")


async def test_one_caller_that_gives_up_does_not_end_the_fetch_for_the_others() -> None:
    authority = Authority({})
    authority.may_answer.clear()
    async with scripted(authority) as tokens:
        first = asyncio.create_task(tokens.token("a"))
        second = asyncio.create_task(tokens.token("a"))
        await authority.was_asked.wait()
        first.cancel()
        await asyncio.sleep(0)
        authority.may_answer.set()
        assert await second == "t1"
        with pytest.raises(asyncio.CancelledError):
            await first
    assert len(authority.asked) == 1


async def test_the_deadline_of_who_asked_first_does_not_bound_the_fetch_for_the_others() -> None:
    authority = Authority({})
    authority.may_answer.clear()
    async with scripted(authority) as tokens:

        async def impatient() -> None:
            async with deadline("50ms"):
                await tokens.token("a")

        first = asyncio.create_task(impatient())
        await authority.was_asked.wait()
        second = asyncio.create_task(tokens.token("a"))
        with pytest.raises(DeadlineExceeded):
            await first
        authority.may_answer.set()
        assert await second == "t1"


async def test_forgotten_token_is_fetched_anew_and_others_are_not() -> None:
    authority = Authority({})
    async with scripted(authority) as tokens:
        assert isinstance(tokens, ForgetfulTokenSource)
        first = await tokens.token("a")
        tokens.forget("a", "another")
        assert await tokens.token("a") == first
        tokens.forget("a", first)
        assert await tokens.token("a") != first


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"access_token":"a","access_token":"b","token_type":"Bearer"}',
        b'{"access_token":"a","token_type":"Bearer"' + b" " * 70_000 + b"}",
        {"access_token": 1},
        {"access_token": ""},
        {"access_token": "a\r\nx-evil: 1"},
        {"access_token": "a" * 20_000},
        {"token_type": "mac"},
        {"token_type": None},
        {"expires_in": 0},
        {"expires_in": -1},
        {"expires_in": True},
        {"expires_in": "60"},
        {"expires_in": 10**30},
        {"status": 400, "error": "unheard_of"},
        {"status": 400, "error": {"a": 1}},
        {"status": 302, "error": "invalid_client"},
        (302, {"location": "https://elsewhere.example/token"}),
    ],
    ids=lambda answer: str(answer)[:40],
)
async def test_answer_that_makes_no_sense_is_unavailable(answer: Any) -> None:
    authority = Authority(answer)
    async with scripted(authority) as tokens:
        with pytest.raises(Unavailable) as caught:
            await tokens.token("a")
    assert "s3cret" not in str(caught.value)


async def test_lifetime_that_is_not_told_is_taken_for_short(clock: Time) -> None:
    authority = Authority(b'{"access_token":"a","token_type":"bearer"}')
    async with scripted(authority) as tokens:
        await tokens.token("a")
        clock.now += 59
        await tokens.token("a")
    assert len(authority.asked) == 2


async def test_source_is_used_between_open_and_close_only() -> None:
    tokens = scripted(Authority({}))
    with pytest.raises(LifecycleError):
        await tokens.token("a")
    async with tokens:
        await tokens.token("a")
    with pytest.raises(LifecycleError):
        await tokens.token("a")


async def test_close_ends_a_fetch_under_way() -> None:
    authority = Authority({}, delay=60)
    tokens = scripted(authority, timeout="60s")
    await tokens.open()
    waiting = asyncio.create_task(tokens.token("a"))
    await authority.was_asked.wait()
    await tokens.close()
    with pytest.raises((asyncio.CancelledError, KmpError)):
        await waiting


@pytest.mark.parametrize("address", ["http://auth.example/token", "auth.example", "https://a:b@auth.example/token"])
def test_address_that_would_give_the_secret_away_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="token_url") as caught:
        ClientCredentials(address, client_id="a/b", secret="s3cret")
    assert "s3cret" not in str(caught.value)
