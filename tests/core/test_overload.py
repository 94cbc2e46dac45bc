"""More load than can be served: bounded, refused early, and shared so that no caller starves the others."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from kmp_core.asgi.fairness import FairQueue
from kmp_core.asgi.overload import Overload, OverloadSettings, caller_key
from kmp_core.asgi.problems import Message, Receive, Scope, Send
from kmp_core.deadlines import deadline
from kmp_core.errors import ConfigurationError, DeadlineExceeded, InvalidInput, Overloaded
from kmp_core.tokens.authority import DevelopmentAuthority
from kmp_core.tokens.principal import acting_as

FOREVER = 60.0


async def settle() -> None:
    """Let every task get as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Crowd:
    """Callers that take a place and hold it until they are told to go."""

    def __init__(self, queue: FairQueue) -> None:
        self.queue = queue
        self.inside: list[tuple[str, float]] = []
        self.order: list[str] = []
        self.refused: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []

    async def come(self, caller: str, count: int = 1, *, timeout: float = FOREVER, left: float | None = None) -> None:
        for _ in range(count):
            self.tasks.append(asyncio.create_task(self._enter(caller, timeout, left)))
        await settle()

    async def _enter(self, caller: str, timeout: float, left: float | None) -> None:
        try:
            began = await self.queue.enter(caller, timeout=timeout, deadline=left)
        except Overloaded:
            self.refused.append(caller)
        else:
            self.inside.append((caller, began))
            self.order.append(caller)

    async def go(self, caller: str | None = None) -> None:
        index = 0 if caller is None else next(i for i, (name, _) in enumerate(self.inside) if name == caller)
        self.queue.leave(*self.inside.pop(index))
        await settle()

    async def empty(self) -> None:
        while self.inside:
            await self.go()
        for task in self.tasks:
            await task
        assert (self.queue.running, self.queue.waiting) == (0, 0)


async def test_no_more_than_the_places_are_taken() -> None:
    crowd = Crowd(FairQueue(3, 10))
    await crowd.come("a", 8)
    assert (crowd.queue.running, crowd.queue.waiting) == (3, 5)
    await crowd.go()
    assert (crowd.queue.running, crowd.queue.waiting) == (3, 4)
    await crowd.empty()
    assert len(crowd.order) == 8


async def test_full_queue_refuses_with_a_time_to_come_back() -> None:
    crowd = Crowd(FairQueue(1, 2))
    await crowd.come("a", 3)
    with pytest.raises(Overloaded) as caught:
        await crowd.queue.enter("a", timeout=FOREVER)
    assert caught.value.retry_after >= 1
    assert caught.value.retryable
    await crowd.empty()


async def test_free_place_goes_to_the_caller_that_holds_fewest() -> None:
    crowd = Crowd(FairQueue(4, 100))
    await crowd.come("greedy", 40)
    await crowd.come("modest", 2)
    await crowd.go()
    await crowd.go()
    assert crowd.order[4:] == ["modest", "modest"]
    await crowd.empty()


async def test_callers_in_line_take_turns() -> None:
    crowd = Crowd(FairQueue(1, 100))
    await crowd.come("x")
    for caller in ("a", "a", "a", "b", "b", "c"):
        await crowd.come(caller)
    await crowd.empty()
    assert crowd.order == ["x", "a", "b", "c", "a", "b", "a"]


async def test_one_caller_cannot_hold_all_places() -> None:
    crowd = Crowd(FairQueue(10, 100, share=0.8))
    await crowd.come("greedy", 50)
    assert crowd.queue.running == 8
    await crowd.come("modest")  # needs no place of the greedy one to be given back
    assert crowd.order[-1] == "modest"
    await crowd.empty()


async def test_longest_line_gives_way_when_the_queue_is_full() -> None:
    crowd = Crowd(FairQueue(1, 4))
    await crowd.come("greedy", 5)
    await crowd.come("modest")
    assert crowd.refused == ["greedy"]
    await crowd.come("modest")
    assert crowd.refused == ["greedy", "greedy"]
    await crowd.come("modest")  # as long a line as the other's: nobody is pushed out any more
    assert crowd.refused == ["greedy", "greedy", "modest"]
    await crowd.empty()
    assert Counter(crowd.order) == {"greedy": 3, "modest": 2}


async def test_waiting_is_bounded_and_leaves_the_line() -> None:
    crowd = Crowd(FairQueue(1, 4))
    await crowd.come("a")
    with pytest.raises(Overloaded):
        await crowd.queue.enter("b", timeout=0.01)
    assert crowd.queue.waiting == 0
    await crowd.empty()


async def test_time_that_cannot_be_met_is_refused_at_once() -> None:
    queue = FairQueue(1, 100)
    for _ in range(50):
        await queue.enter("a", timeout=FOREVER)
        queue.leave("a", time.perf_counter() - 1)  # as if it had held the place for a second
    crowd = Crowd(queue)
    await crowd.come("a")
    await crowd.come("a", left=0.2)
    assert crowd.refused == ["a"]
    assert queue.waiting == 0
    await crowd.come("a", left=30)
    assert queue.waiting == 1
    await crowd.empty()


async def test_cancelled_waiter_takes_no_place() -> None:
    crowd = Crowd(FairQueue(1, 10))
    await crowd.come("a", 3)
    crowd.tasks[1].cancel()
    await settle()
    assert crowd.queue.waiting == 1
    await crowd.go()
    assert crowd.queue.running == 1
    crowd.tasks.pop(1)
    await crowd.empty()


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_place_given_to_a_cancelled_waiter_is_passed_on(cancel_first: bool) -> None:
    crowd = Crowd(FairQueue(1, 10))
    await crowd.come("a", 3)
    # Both in one turn of the loop: whoever is first, the place must end with the third.
    if cancel_first:
        crowd.tasks[1].cancel()
    crowd.queue.leave(*crowd.inside.pop())
    if not cancel_first:
        crowd.tasks[1].cancel()
    await settle()
    assert len(crowd.inside) == 1
    assert crowd.tasks.pop(1).cancelled()
    await crowd.empty()


async def test_random_load_never_loses_or_invents_a_place() -> None:
    chance = random.Random(7)
    queue = FairQueue(5, 12, share=0.6)
    held: Counter[str] = Counter()

    async def visit(caller: str) -> str:
        try:
            began = await queue.enter(caller, timeout=chance.choice([0.0, 0.001, 0.01, FOREVER]))
        except Overloaded:
            return "refused"
        held[caller] += 1
        assert held.total() <= queue.running <= 5  # one that was given its place may not have woken
        assert held[caller] <= 3
        try:
            await asyncio.sleep(chance.choice([0, 0, 0.001]))
        finally:
            held[caller] -= 1
            queue.leave(caller, began)
        return "served"

    outcomes: Counter[str] = Counter()
    for _ in range(40):
        tasks = [asyncio.create_task(visit(chance.choice("abcd"))) for _ in range(50)]
        for task in chance.sample(tasks, 10):
            await asyncio.sleep(0)
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, AssertionError):
                raise result
            outcomes[str(result) or "cancelled"] += 1
    assert (queue.running, queue.waiting) == (0, 0)
    assert min(outcomes["served"], outcomes["refused"], outcomes["cancelled"]) > 50


@pytest.mark.parametrize("share", [0, -1, 1.1])
def test_share_that_makes_no_sense_is_refused(share: float) -> None:
    with pytest.raises(InvalidInput, match="share"):
        FairQueue(1, 1, share=share)


async def call(app: Any, path: str = "/", *, host: str = "10.0.0.1", **scope: Any) -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    base = {"type": "http", "method": "GET", "path": path, "headers": [], "client": (host, 1)}
    await app({**base, **scope}, receive, send)
    return sent


class Gate:
    """An application that answers once it is let."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.open.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})


async def test_request_beyond_the_limit_is_503_with_retry_after_and_health_is_served() -> None:
    gate = Gate()
    settings = OverloadSettings(concurrency=1, queue_length=0, caller_share=1)
    app = Overload(gate, settings=settings, exempt=["/livez"])
    first = asyncio.create_task(call(app))
    await settle()
    refused = await call(app)
    assert refused[0]["status"] == 503
    assert dict(refused[0]["headers"])[b"retry-after"] == b"1"
    health = [asyncio.create_task(call(app, "/livez")) for _ in range(5)]
    await settle()
    assert (await call(app, "/livez", method="POST"))[0]["status"] == 503
    gate.open.set()
    assert [(await task)[0]["status"] for task in [first, *health]] == [200] * 6
    assert (await call(app))[0]["status"] == 200


async def test_place_comes_back_when_the_application_fails() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a bug")

    app = Overload(broken, settings=OverloadSettings(concurrency=1, queue_length=0, caller_share=1))
    for _ in range(3):
        with pytest.raises(RuntimeError):
            await call(app)


async def test_deadline_in_the_queue_gives_the_place_in_line_back() -> None:
    gate = Gate()
    app = Overload(gate, settings=OverloadSettings(concurrency=1, queue_length=1, caller_share=1, queue_timeout="30s"))
    first = asyncio.create_task(call(app))
    await settle()
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            async with deadline(0.02):
                await call(app)
    gate.open.set()
    await first


async def test_websockets_have_a_limit_of_their_own() -> None:
    gate = Gate()
    app = Overload(gate, settings=OverloadSettings(concurrency=1, websockets=1, caller_share=1))
    held = asyncio.create_task(call(app, type="websocket"))
    await settle()
    assert await call(app, type="websocket") == [{"type": "websocket.close", "code": 1013}]
    gate.open.set()
    assert (await call(app))[0]["status"] == 200
    await held


def test_caller_is_the_proved_one_else_the_network() -> None:
    authority = DevelopmentAuthority()
    token = authority.issue(project="skyline", service="departures", audience="delays")
    scope: Scope = {"client": ("10.0.0.1", 1)}
    with acting_as(authority.verifier(audience="delays").verify_now(token)):
        assert caller_key(scope) == "spiffe://kmp.local/ns/skyline/sa/departures"
    assert caller_key(scope) == "address 10.0.0.1"
    near, far = {"client": ("2001:db8::1", 1)}, {"client": ("2001:db8:0:1::1", 1)}
    assert caller_key(near) == caller_key({"client": ("2001:db8::ffff:2", 9)}) != caller_key(far)
    assert caller_key({"client": None}) == caller_key({}) == caller_key({"client": ("", 0)})


@pytest.mark.parametrize(
    "wrong",
    [{"concurrency": 0}, {"queue_length": -1}, {"caller_share": 0}, {"caller_share": 2}, {"queue_timeout": "x"}],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="OVERLOAD|" + next(iter(wrong))):
        OverloadSettings.load(**wrong)


async def test_greedy_caller_does_not_starve_a_modest_one_of_another_process(
    serve: Callable[..., dict[str, Any]], tmp_path: Any
) -> None:
    authority = DevelopmentAuthority()
    keys = tmp_path / "jwks.json"
    keys.write_text(json.dumps(authority.jwks()))
    limits = '{"concurrency": 4, "queue_length": 8, "queue_timeout": "2s", "caller_share": 0.75}'
    started = serve("starlette", str(keys), limits)

    def client(service: str) -> httpx.AsyncClient:
        token = authority.issue(project="skyline", service=service, audience="delays")
        return httpx.AsyncClient(
            base_url=started["url"],
            headers={"authorization": f"Bearer {token}"},
            trust_env=False,
            timeout=30,
            limits=httpx.Limits(max_connections=100),
        )

    greedy_answers: list[httpx.Response] = []
    done = asyncio.Event()

    async with client("greedy") as greedy, client("modest") as modest:

        async def flood() -> None:
            while not done.is_set():
                answer = await greedy.get("/count", params={"key": "g", "seconds": "0.03"})
                greedy_answers.append(answer)

        async with asyncio.TaskGroup() as group:
            for _ in range(30):
                group.create_task(flood())
            while len(greedy_answers) < 30:  # noqa: ASYNC110 - the flood itself is what is waited for
                await asyncio.sleep(0.01)
            query = {"key": "m", "seconds": "0.03"}
            statuses = [(await modest.get("/count", params=query)).status_code for _ in range(20)]
            assert (await modest.get("/livez")).status_code == 200
            done.set()
    assert statuses == [200] * 20
    outcomes = Counter(answer.status_code for answer in greedy_answers)
    assert set(outcomes) == {200, 503}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in greedy_answers if answer.status_code == 503)
