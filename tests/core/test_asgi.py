"""Who may call a served application, in a process of its own, under Starlette and under FastAPI."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from kmp_core.asgi import Authentication, Inbound, Require, require
from kmp_core.asgi.problems import ASGIApp, Message, Receive, Scope, Send
from kmp_core.errors import InvalidInput, KmpError, Unauthenticated, Unavailable
from kmp_core.tokens.authority import DevelopmentAuthority
from kmp_core.tokens.principal import Principal, acting_as, caller, current_caller

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def authority() -> DevelopmentAuthority:
    return DevelopmentAuthority()


@pytest.fixture(scope="module")
def keys(authority: DevelopmentAuthority, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "jwks.json"
    path.write_text(json.dumps(authority.jwks()))
    return path


@pytest.fixture(scope="module", params=["starlette", "fastapi"])
def url(request: pytest.FixtureRequest, keys: Path, serve: Callable[..., dict[str, Any]]) -> str:
    return serve(request.param, str(keys))["url"]


def bearer(authority: DevelopmentAuthority, project: str = "skyline", **options: Any) -> dict[str, str]:
    token = authority.issue(project=project, service="departures", **{"audience": "delays", **options})
    return {"authorization": f"Bearer {token}"}


def get(url: str, headers: Any = None) -> httpx.Response:
    return httpx.get(url, headers=headers, timeout=10, trust_env=False)


def assert_refused(response: httpx.Response, status: int, challenge: str) -> None:
    assert response.status_code == status
    assert response.headers["www-authenticate"] == challenge
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["cache-control"] == "no-store"
    # RFC 9457, and not one word about the reason.
    assert response.json() == {"type": "about:blank", "title": httpx.codes.get_reason_phrase(status), "status": status}


def test_proved_caller_is_served_and_named(url: str, authority: DevelopmentAuthority) -> None:
    answer = get(f"{url}/whoami", {**bearer(authority), "traceparent": TRACEPARENT})
    assert answer.status_code == 200
    content = answer.json()
    assert (content["project"], content["service"]) == ("skyline", "departures")
    assert content["log"] == {"caller_project": "skyline", "caller_service": "departures"}
    assert content["trace_id"] == TRACE
    assert 0 < content["remaining"] <= 5


def test_caller_without_token_is_told_the_scheme_only(url: str) -> None:
    assert_refused(get(f"{url}/whoami"), 401, 'Bearer realm="kmp"')


@pytest.mark.parametrize(
    "headers",
    [
        [("authorization", "Bearer")],
        [("authorization", "Bearer x")],
        [("authorization", "Bearer a.b.c")],
        [("authorization", "Basic dXNlcjpwYXNzd29yZA==")],
        [("authorization", "")],
        [("authorization", "Bearer " + "a" * 30_000)],
        [("authorization", b"Bearer \xff\xfe.a.b")],
    ],
    ids=lambda headers: str(headers[0][1])[:24],
)
def test_every_bad_token_gets_one_answer(url: str, headers: Any) -> None:
    assert_refused(get(f"{url}/whoami", headers), 401, 'Bearer realm="kmp", error="invalid_token"')


def test_expired_foreign_and_other_audiences_tokens_get_the_same_answer(
    url: str, authority: DevelopmentAuthority
) -> None:
    past = datetime.now(UTC) - timedelta(hours=1)
    stranger = DevelopmentAuthority()
    refusals = [
        bearer(authority, issued_at=past),
        bearer(authority, audience="tower"),
        bearer(authority, claims={"iss": "http://localhost:1"}),
        bearer(stranger),
        {"authorization": bearer(authority)["authorization"][:-20] + "A" * 20},
    ]
    answers = [get(f"{url}/whoami", headers) for headers in refusals]
    for answer in answers:
        assert_refused(answer, 401, 'Bearer realm="kmp", error="invalid_token"')
    assert len({answer.content for answer in answers}) == 1


def test_two_authorization_headers_are_refused(url: str, authority: DevelopmentAuthority) -> None:
    good = ("authorization", bearer(authority)["authorization"])
    for headers in ([good, good], [good, ("authorization", "Bearer x")]):
        assert_refused(get(f"{url}/whoami", headers), 401, 'Bearer realm="kmp", error="invalid_token"')


def test_token_in_the_address_is_no_token(url: str, authority: DevelopmentAuthority) -> None:
    token = bearer(authority)["authorization"].partition(" ")[2]
    assert get(f"{url}/whoami?access_token={token}").status_code == 401


def test_known_caller_of_another_project_is_forbidden(url: str, authority: DevelopmentAuthority) -> None:
    challenge = 'Bearer realm="kmp", error="insufficient_scope"'
    for path in ("secret", "internal/page"):
        assert_refused(get(f"{url}/{path}", bearer(authority)), 403, challenge)
        assert get(f"{url}/{path}", bearer(authority, "harbour")).status_code == 200
        assert get(f"{url}/{path}").status_code == 401


def test_health_needs_no_token_and_nothing_beside_it_is_open(url: str, authority: DevelopmentAuthority) -> None:
    assert get(f"{url}/livez").text == "alive"
    for path in ("/livez/", "//livez", "/livez/../whoami", "/LIVEZ", "/livez%2f", "/livezz", "/livez;a"):
        assert get(f"{url}{path}").status_code == 401, path
    assert httpx.post(f"{url}/livez", trust_env=False).status_code == 401


def test_callers_time_is_kept_and_answered_with_504(url: str, authority: DevelopmentAuthority) -> None:
    assert get(f"{url}/whoami", {**bearer(authority), "grpc-timeout": "3S"}).json()["remaining"] <= 3
    answer = get(f"{url}/slow?seconds=60", {**bearer(authority), "grpc-timeout": "100m"})
    assert answer.status_code == 504
    assert answer.json() == {"type": "about:blank", "title": "Gateway Timeout", "status": 504}
    assert get(f"{url}/counted?key=cancelled", bearer(authority)).json() >= 1


def test_callers_time_that_is_over_is_not_begun_with(url: str, authority: DevelopmentAuthority) -> None:
    headers = {**bearer(authority), "grpc-timeout": "0m"}
    assert get(f"{url}/count?key=late", headers).status_code == 504
    assert get(f"{url}/counted?key=late", bearer(authority)).json() == 0


@pytest.mark.parametrize("value", ["99999999H", "1", "-1S", "1e9S", "S", "999999999S", "1S,2S"])
def test_callers_time_is_bounded_by_the_service(url: str, authority: DevelopmentAuthority, value: str) -> None:
    left = get(f"{url}/whoami", {**bearer(authority), "grpc-timeout": value}).json()["remaining"]
    assert 0 < left <= 5


def test_stream_beyond_its_time_is_cut_off(url: str, authority: DevelopmentAuthority) -> None:
    headers = {**bearer(authority), "grpc-timeout": "300m"}
    with (
        httpx.Client(trust_env=False, timeout=10) as client,
        client.stream("GET", f"{url}/stream", headers=headers) as answer,
    ):
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()


@pytest.mark.parametrize(
    "traceparent",
    ["", "x", f"00-{'0' * 32}-b7ad6b7169203331-01", f"ff-{TRACE}-b7ad6b7169203331-01", TRACEPARENT + "-x", "a" * 9000],
)
def test_damaged_trace_begins_none_of_the_callers(url: str, authority: DevelopmentAuthority, traceparent: str) -> None:
    answer = get(f"{url}/whoami", {**bearer(authority), "traceparent": traceparent})
    assert answer.status_code == 200
    assert answer.json()["trace_id"] != TRACE


@pytest.mark.parametrize("other", [TRACEPARENT, f"00-{'1' * 32}-b7ad6b7169203331-01"], ids=["same", "other"])
def test_two_parents_are_none(url: str, authority: DevelopmentAuthority, other: str) -> None:
    headers = [*bearer(authority).items(), ("traceparent", TRACEPARENT), ("traceparent", other)]
    answer = get(f"{url}/whoami", headers)
    assert answer.status_code == 200
    assert answer.json()["trace_id"] not in {TRACE, "1" * 32}


def test_keys_rotate_under_traffic_without_one_refusal(
    authority: DevelopmentAuthority, keys: Path, serve: Callable[..., dict[str, Any]]
) -> None:
    started = serve("starlette", str(keys))
    with httpx.Client(base_url=started["url"], trust_env=False, timeout=10) as client:
        old = bearer(authority)
        first = authority.jwks()["keys"][-1]["kid"]
        for _ in range(3):
            for _ in range(20):
                assert client.get("/whoami", headers=old).status_code == 200
            authority.rotate()
            reload(client, keys, authority, started, bearer(authority))
            assert client.get("/whoami", headers=old).status_code == 200  # its key is still published
        authority.withdraw(first)
        keys.write_text(json.dumps(authority.jwks()))
        started["process"].send_signal(signal.SIGHUP)
        wait_for(client, old, 401)
        assert client.get("/whoami", headers=bearer(authority)).status_code == 200


def reload(
    client: httpx.Client, keys: Path, authority: DevelopmentAuthority, started: dict[str, Any], headers: dict[str, str]
) -> None:
    keys.write_text(json.dumps(authority.jwks()))
    started["process"].send_signal(signal.SIGHUP)
    wait_for(client, headers, 200)


def wait_for(client: httpx.Client, headers: dict[str, str], status: int) -> None:
    for _ in range(2000):
        if client.get("/whoami", headers=headers).status_code == status:
            return
    pytest.fail(f"the service never answered {status}")


# What follows speaks ASGI itself, for what HTTP clients do not show.


async def talk(app: ASGIApp, scope: dict[str, Any], *incoming: Message) -> list[Message]:
    sent: list[Message] = []
    messages = iter(incoming)

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent


def websocket(headers: dict[str, str], **scope: Any) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "websocket", "path": "/livez", "headers": raw, "scheme": "ws", **scope}


async def greet(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "websocket.accept", "subprotocol": caller().project})


async def test_websocket_is_refused_before_it_is_accepted(authority: DevelopmentAuthority) -> None:
    app = Inbound(greet, verifier=authority.verifier(audience="delays"))
    connect = {"type": "websocket.connect"}
    for headers in ({}, {"authorization": "Bearer x"}):
        assert await talk(app, websocket(headers), connect) == [{"type": "websocket.close", "code": 1008}]
        denial = await talk(app, websocket(headers, extensions={"websocket.http.response": {}}), connect)
        assert [message["type"] for message in denial] == [
            "websocket.http.response.start",
            "websocket.http.response.body",
        ]
        assert denial[0]["status"] == 401
    accepted = await talk(app, websocket(bearer(authority)), connect)
    assert accepted == [{"type": "websocket.accept", "subprotocol": "skyline"}]


async def test_websocket_of_another_project_is_refused(authority: DevelopmentAuthority) -> None:
    app = Authentication(Require(greet, project="harbour"), verifier=authority.verifier(audience="delays"))
    connect = {"type": "websocket.connect"}
    assert await talk(app, websocket(bearer(authority)), connect) == [{"type": "websocket.close", "code": 1008}]
    assert (await talk(app, websocket(bearer(authority, "harbour")), connect))[0]["type"] == "websocket.accept"


async def test_answer_that_has_begun_is_not_answered_again(authority: DevelopmentAuthority) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise Unavailable("the backend went away")

    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    served = Inbound(app, verifier=authority.verifier(audience="delays"))
    with pytest.raises(Unavailable):
        await served(request("/", bearer(authority)), receive, send)
    assert [message["type"] for message in sent] == ["http.response.start"]


async def test_error_of_ours_that_escapes_has_a_status(authority: DevelopmentAuthority) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise Unavailable("the backend went away: password=hunter2")

    answer = await talk(Inbound(app, verifier=authority.verifier(audience="delays")), request("/", bearer(authority)))
    assert answer[0]["status"] == 503
    assert b"hunter2" not in answer[1]["body"]


async def test_lifespan_passes_through(authority: DevelopmentAuthority) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    await talk(Inbound(app, verifier=authority.verifier(audience="delays")), {"type": "lifespan"})
    assert seen == ["lifespan"]


def request(path: str, headers: dict[str, str], **scope: Any) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "GET", "path": path, "headers": raw, "client": ("10.0.0.1", 1), **scope}


async def test_principal_does_not_outlive_its_request(authority: DevelopmentAuthority) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert caller() is scope["state"]["principal"]

    state = {"shared": 1}
    guarded = Authentication(app, verifier=authority.verifier(audience="delays"))
    await talk(guarded, request("/", bearer(authority), state=state))
    assert current_caller() is None
    assert state == {"shared": 1}
    with pytest.raises(Unauthenticated):
        caller()


async def test_two_requests_at_once_do_not_mix_callers(authority: DevelopmentAuthority) -> None:
    both = asyncio.Barrier(2)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await both.wait()
        assert caller().project == scope["path"].strip("/")

    guarded = Inbound(app, verifier=authority.verifier(audience="delays"))
    async with asyncio.TaskGroup() as group:
        for project in ("skyline", "harbour"):
            group.create_task(talk(guarded, request(f"/{project}", bearer(authority, project))))


async def test_verifier_that_cannot_answer_is_503_and_not_401() -> None:
    class Offline:
        async def verify(self, token: str) -> Principal:
            raise Unavailable("the keys cannot be fetched")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pytest.fail("nobody was proved")

    answer = await talk(Authentication(app, verifier=Offline()), request("/", {"authorization": "Bearer x"}))
    assert answer[0]["status"] == 503


async def test_verifier_that_breaks_lets_nobody_in() -> None:
    class Broken:
        async def verify(self, token: str) -> Principal:
            raise RuntimeError("a bug")

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        pytest.fail("nobody was proved")

    with pytest.raises(RuntimeError):
        await talk(Authentication(app, verifier=Broken()), request("/", {"authorization": "Bearer x"}))


async def test_guard_tells_missing_from_wrong(authority: DevelopmentAuthority) -> None:
    principal = authority.verifier(audience="delays").verify_now(
        authority.issue(project="skyline", service="departures", audience="delays", scopes=["read"])
    )
    with pytest.raises(Unauthenticated):
        await require(project="skyline")()
    with acting_as(principal):
        assert await require(project="skyline", service="departures", scope="read")() is principal
        for wrong in ({"project": "skylin"}, {"service": "tower"}, {"scope": "write"}, {"scope": "rea"}):
            with pytest.raises(KmpError, match=r"may not|is needed"):
                await require(**wrong)()


@pytest.mark.parametrize("wrong", [{}, {"project": "skyl\u0456ne"}, {"project": "Sky"}, {"service": ""}])
def test_guard_that_could_never_work_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidInput):
        require(**wrong)


@pytest.mark.parametrize("exempt", ["/livez", ["livez"]])
def test_exempt_paths_that_could_never_match_are_refused(exempt: Any, authority: DevelopmentAuthority) -> None:
    with pytest.raises(InvalidInput, match="exempt"):
        Authentication(greet, verifier=authority.verifier(audience="delays"), exempt=exempt)
