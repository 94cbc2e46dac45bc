"""Calling a service of another process: what a call carries, where it never goes, and what its failure means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider

from kmp_core.deadlines import deadline
from kmp_core.errors import (
    BreakerOpen,
    ConfigurationError,
    DeadlineExceeded,
    KmpError,
    OutcomeUnknown,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from kmp_core.http import ServiceClient, client
from kmp_core.retries import Policy, Retries
from kmp_core.tokens.authority import DevelopmentAuthority


class Tokens:
    """A source over an authority in this process, which can be made to give old tokens."""

    def __init__(self, authority: DevelopmentAuthority) -> None:
        self.authority = authority
        self.asked: list[str] = []
        self.forgotten: list[str] = []
        self.old: str | None = None

    async def token(self, audience: str) -> str:
        self.asked.append(audience)
        return self.old or self.authority.issue(project="skyline", service="departures", audience=audience)

    def forget(self, audience: str, token: str) -> None:
        self.forgotten.append(token)
        self.old = None


@pytest.fixture(scope="module")
def authority() -> DevelopmentAuthority:
    return DevelopmentAuthority()


@pytest.fixture(scope="module")
def url(
    authority: DevelopmentAuthority,
    tmp_path_factory: pytest.TempPathFactory,
    serve: Callable[..., dict[str, Any]],
) -> str:
    keys = tmp_path_factory.mktemp("keys") / "jwks.json"
    keys.write_text(json.dumps(authority.jwks()))
    return serve("starlette", str(keys))["url"]


@pytest.fixture
def tokens(authority: DevelopmentAuthority) -> Tokens:
    return Tokens(authority)


@pytest.fixture
async def delays(url: str, tokens: Tokens) -> AsyncIterator[ServiceClient]:
    async with client(url, tokens=tokens, audience="delays") as delays:
        yield delays


async def count(delays: ServiceClient, key: str) -> int:
    number: int = (await delays.get("/counted", params={"key": key})).json()
    return number


async def test_call_carries_token_trace_and_time(delays: ServiceClient, tokens: Tokens) -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("caller") as span:
        async with deadline("3s"):
            content = (await delays.get("/whoami")).json()
        assert content["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert (content["project"], content["service"]) == ("skyline", "departures")
    assert 0 < content["remaining"] <= 3
    assert set(tokens.asked) == {"delays"}


async def test_own_authorization_header_gives_way(delays: ServiceClient) -> None:
    answer = await delays.get("/whoami", headers={"authorization": "Bearer of-somebody-else"})
    assert answer.json()["project"] == "skyline"


@asynccontextmanager
async def listening(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server of raw sockets, for what well-behaved servers do not do."""

    writers: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await answer(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def test_token_never_follows_a_redirect_to_another_origin(url: str, tokens: Tokens) -> None:
    heads: list[bytes] = []

    async def spy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
        await writer.drain()

    async with listening(spy) as elsewhere, client(url, tokens=tokens, audience="delays") as delays:
        for method in ("GET", "POST"):
            answer = await delays.request(method, "/elsewhere", params={"to": elsewhere}, follow_redirects=True)
            assert (answer.status_code, str(answer.url).rstrip("/")) == (200, elsewhere)
        assert (await delays.get(f"{elsewhere}/direct")).status_code == 200
    assert len(heads) == 3
    for head in heads:
        assert b"authorization" not in head.lower()
        assert b"grpc-timeout" not in head.lower()
        assert b"traceparent" not in head.lower()


async def test_the_environment_neither_takes_nor_replaces_the_token(
    url: str, tokens: Tokens, thief: list[bytes]
) -> None:
    """As anybody may who can set a variable for a pod, or write into its home directory."""
    async with client(url, tokens=tokens, audience="delays") as delays:
        for method in ("GET", "PUT"):
            path = "/whoami" if method == "GET" else "/count?key=proxied"
            assert (await delays.request(method, path)).status_code == 200
        answer = (await delays.get("/whoami")).json()
        assert answer["authorization"].startswith("Bearer ey")
        assert answer["project"] == "skyline"
    assert thief == []


async def test_redirect_within_the_service_carries_the_token(delays: ServiceClient, url: str) -> None:
    answer = await delays.get("/elsewhere", params={"to": f"{url}/whoami"}, follow_redirects=True)
    assert answer.json()["project"] == "skyline"


async def test_refused_token_is_replaced_once(url: str, tokens: Tokens) -> None:
    stranger = DevelopmentAuthority()
    old = stranger.issue(project="skyline", service="departures", audience="delays")
    tokens.old = old
    async with client(url, tokens=tokens, audience="delays") as delays:
        answer = await delays.post("/count", params={"key": "renewed"}, content=b"12345")
        assert answer.json() == {"count": 1, "size": 5}
        assert tokens.forgotten == [old]
        tokens.authority = stranger
        with pytest.raises(Unauthenticated, match="did not accept"):
            await delays.get("/whoami")
        assert len(tokens.forgotten) == 2


async def test_body_from_a_stream_is_not_sent_twice(url: str, tokens: Tokens) -> None:
    tokens.old = DevelopmentAuthority().issue(project="skyline", service="departures", audience="delays")

    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    async with client(url, tokens=tokens, audience="delays") as delays:
        with pytest.raises(Unauthenticated):
            await delays.put("/count", params={"key": "streamed"}, content=body())


async def test_source_that_keeps_nothing_is_not_asked_again(url: str, authority: DevelopmentAuthority) -> None:
    class Fixed:
        def __init__(self) -> None:
            self.asked = 0

        async def token(self, audience: str) -> str:
            self.asked += 1
            return "not.a.token"

    fixed = Fixed()
    async with client(url, tokens=fixed, audience="delays") as delays:
        with pytest.raises(Unauthenticated):
            await delays.get("/whoami")
    assert fixed.asked == 1


async def test_forbidden_is_permission_denied(delays: ServiceClient) -> None:
    with pytest.raises(PermissionDenied):
        await delays.get("/secret")


async def test_other_answers_are_the_callers_business(delays: ServiceClient) -> None:
    assert (await delays.get("/nothing-here")).status_code == 404
    assert (await delays.get("/count", params={"key": "own", "statuses": "500"})).status_code == 500


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_method_that_may_be_repeated_is_tried_again(method: str, delays: ServiceClient) -> None:
    query = {"key": f"again-{method}", "statuses": "503,503,200"}
    assert (await delays.request(method, "/count", params=query)).json()["count"] == 3


async def test_a_body_from_a_stream_is_gone_after_the_first_try(delays: ServiceClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"once"

    with pytest.raises(Overloaded) as caught:
        await delays.put("/count", params={"key": "gone", "statuses": "503,200"}, content=body())
    assert caught.value.retryable
    assert await count(delays, "gone") == 1


async def test_post_is_done_once(delays: ServiceClient) -> None:
    with pytest.raises(Overloaded) as caught:
        await delays.post("/count", params={"key": "post", "statuses": "503,200"})
    assert caught.value.retryable
    assert await count(delays, "post") == 1


async def test_retries_are_bounded(url: str, tokens: Tokens) -> None:
    retries = Retries("delays", policy=Policy(attempts=2))
    async with client(url, tokens=tokens, audience="delays", retries=retries) as delays:
        with pytest.raises(Overloaded):
            await delays.get("/count", params={"key": "bounded", "statuses": "503"})
        assert await count(delays, "bounded") == 2


async def test_time_of_the_whole_is_bounded(delays: ServiceClient) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        await delays.get("/slow", params={"seconds": "60"}, timeout=0.2)
    assert not caught.value.outcome_unknown
    with pytest.raises(DeadlineExceeded) as caught:
        async with deadline("200ms"):
            await delays.post("/count", params={"key": "slow", "seconds": "60"})
    assert caught.value.outcome_unknown


async def test_service_that_ran_out_of_time_is_a_deadline(delays: ServiceClient) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        await delays.get("/count", params={"key": "504", "statuses": "504"}, timeout=0.5)
    assert not caught.value.outcome_unknown


async def test_caller_without_patience_asks_for_nothing(delays: ServiceClient) -> None:
    with pytest.raises(DeadlineExceeded):
        async with deadline(0):
            await delays.get("/count", params={"key": "impatient"})
    assert await count(delays, "impatient") == 0


async def test_black_hole_ends_in_time_even_without_a_timeout(tokens: Tokens) -> None:
    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(swallow) as hole, client(hole, tokens=tokens, audience="x", timeout="300ms") as hopeful:
        for patience in ({}, {"timeout": None}, {"timeout": 0.1}):
            with pytest.raises(DeadlineExceeded) as caught:
                await hopeful.get("/", **patience)
            assert not caught.value.outcome_unknown
            with pytest.raises(DeadlineExceeded) as caught:
                await hopeful.post("/", **patience)
            assert caught.value.outcome_unknown


async def test_service_that_is_not_there_is_unavailable(tokens: Tokens) -> None:
    async with client("http://127.0.0.1:1", tokens=tokens, audience="x") as nobody:
        with pytest.raises(Unavailable) as caught:
            await nobody.post("/")
        assert not caught.value.outcome_unknown
        with pytest.raises(Unavailable):
            await nobody.get("/")
        for _ in range(5):
            with pytest.raises(Unavailable):
                await nobody.post("/")
        with pytest.raises(BreakerOpen):
            await nobody.post("/")


async def test_connection_that_breaks_leaves_doubt_where_there_is_some(tokens: Tokens) -> None:
    calls = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        await reader.readuntil(b"\r\n\r\n")
        calls += 1

    retries = Retries("x", policy=Policy(attempts=3))
    async with listening(hang_up) as flaky, client(flaky, tokens=tokens, audience="x", retries=retries) as hopeful:
        with pytest.raises(OutcomeUnknown):
            await hopeful.post("/")
        assert calls == 1
        with pytest.raises(Unavailable) as caught:
            await hopeful.get("/")
        assert (calls, caught.value.outcome_unknown) == (4, False)
        with pytest.raises(Unavailable) as doubtful:
            await hopeful.put("/")
        assert (calls, doubtful.value.outcome_unknown) == (7, True)


async def test_streamed_answer_that_breaks_is_an_error_of_ours(delays: ServiceClient) -> None:
    # The service cuts the stream at the deadline that the call brought.
    with pytest.raises(KmpError):
        async with delays.stream("GET", "/stream", timeout=0.5) as answer:
            assert answer.status_code == 200
            async for chunk in answer.aiter_bytes():
                assert set(chunk) <= set(b"more")


async def test_authority_that_is_down_does_not_open_the_services_breaker(url: str, tokens: Tokens) -> None:
    class Down:
        up = False

        async def token(self, audience: str) -> str:
            if self.up:
                return await tokens.token(audience)
            raise Unavailable("the authority does not answer")

    source = Down()
    async with client(url, tokens=source, audience="delays") as delays:
        for _ in range(20):
            with pytest.raises(Unavailable, match="authority"):
                await delays.get("/whoami")
        source.up = True
        assert (await delays.get("/whoami")).status_code == 200


async def test_errors_and_representations_hold_no_token(url: str, tokens: Tokens) -> None:
    secret = tokens.authority.issue(project="harbour", service="tower", audience="delays")
    tokens.old = secret
    async with client(url, tokens=tokens, audience="delays") as delays:
        answer = await delays.get("/whoami")
        assert secret not in repr(answer) + repr(answer.request) + repr(answer.request.headers.multi_items())
        with pytest.raises(PermissionDenied) as caught:
            await delays.get("/count", params={"key": "h", "statuses": "403"})
        assert secret not in repr(caught.value) + str(caught.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://delays.example",
        "http://10.0.0.1",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example",
        "ftp://localhost",
        "delays.example",
        "//localhost",
        "https://user:pass@delays.example",
        "http://localhost:port",
        "https://[::1",
        "",
    ],
)
def test_address_that_would_give_the_token_away_is_refused(address: str, tokens: Tokens) -> None:
    with pytest.raises(ConfigurationError, match="base_url"):
        client(address, tokens=tokens, audience="delays")


@pytest.mark.parametrize(
    "address",
    ["https://delays.example", "http://localhost:1", "http://127.9.9.9", "http://[::1]:80", "http://a.localhost"],
)
async def test_address_that_keeps_the_token_is_taken(address: str, tokens: Tokens) -> None:
    async with client(address, tokens=tokens, audience="delays"):
        pass


async def test_longer_word_allows_plain_http(tokens: Tokens) -> None:
    async with client("http://10.0.0.1", tokens=tokens, audience="delays", send_tokens_in_the_clear=True):
        pass


async def test_many_calls_at_once_over_few_connections(url: str, tokens: Tokens) -> None:
    async with client(url, tokens=tokens, audience="delays", max_connections=4) as delays:
        answers = await asyncio.gather(*(delays.get("/whoami") for _ in range(60)))
    assert {answer.status_code for answer in answers} == {200}


async def test_pool_that_is_empty_fails_in_time(tokens: Tokens) -> None:
    reached = asyncio.Event()

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reached.set()
        await reader.read()

    async with listening(swallow) as hole, client(hole, tokens=tokens, audience="x", max_connections=1) as few:
        first = asyncio.create_task(few.post("/", timeout=600))
        await reached.wait()
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await few.post("/", timeout=0.2)
        assert not first.done()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_user_agent_of_httpx_still_works_as_a_client(delays: ServiceClient) -> None:
    assert isinstance(delays, httpx.AsyncClient)
    async with delays.stream("GET", "/whoami") as answer:
        assert json.loads(await answer.aread())["project"] == "skyline"
