"""The connections to a Redis Cluster: each call goes to the node that has its slot, wherever that moves.

redis-py's own client for clusters refuses where a node's connections are all busy instead of waiting in line, and knows
times for reads alone, none for a call. So the connections, the deadlines and what a cancelled call takes with it are
those of a single server, and this adds the way: a map of the slots, and following where the nodes point to.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import weakref
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from kmp_core.breaker import Breaker
from kmp_core.errors import (
    AccessDenied,
    BackendError,
    BreakerOpen,
    DeadlineExceeded,
    PoolExhausted,
    Unavailable,
)
from kmp_core.plugins import extra
from kmp_core.pool_metrics import PoolMetrics
from kmp_storage.cache.pauses import Pauses
from kmp_storage.redis.address import RedisAddress
from kmp_storage.redis.channel import Channel, Command, pack_command
from kmp_storage.redis.connections import Connections, Value, due_in, left_until
from kmp_storage.redis.errors import ERRORS, Elsewhere

with extra("redis", install="kmp-storage[redis]"):
    from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
    from redis.exceptions import ResponseError

__all__ = ["Cluster", "Servers"]

Place = tuple[str, int]
T = TypeVar("T")

_LEARN_AGAIN_SECONDS = 0.25
_DIRECTLY = 3  # redirections in a row before a pause


class Cluster:
    """The primaries of a cluster, each with connections and a breaker of its own: one that is gone is no one else's."""

    def __init__(
        self,
        address: RedisAddress,
        *,
        size: int,
        connect_timeout: float,
        breaker: Callable[[], Breaker],
        metrics: PoolMetrics | None = None,
    ) -> None:
        self.address = address
        self._size = size
        self._connect_timeout = connect_timeout
        self._breaker = breaker
        self._metrics = metrics
        self._nodes: dict[Place, Connections] = {}
        self._slots: list[Place | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._known: set[Place] = set(address.cluster)
        self._retired: weakref.WeakSet[Connections] = weakref.WeakSet()
        self._learning = breaker()
        self._learner: asyncio.Task[None] | None = None
        self._learnt_at = 0.0
        self._moved = asyncio.Event()
        self._heard: set[Place] = set()
        self._unheard: set[int] = set()
        self.moves = 0
        """Another number whenever the home of a name may have changed."""
        self._closed = False

    @property
    def in_use(self) -> int:
        """How many connections carry a call now, over all nodes."""
        return sum(node.in_use for node in self._nodes.values())

    @property
    def idle(self) -> int:
        """How many connections lie ready, over all nodes."""
        return sum(node.idle for node in self._nodes.values())

    @property
    def waiting(self) -> int:
        """How many callers wait for a connection, over all nodes."""
        return sum(node.waiting for node in self._nodes.values())

    async def ask(self, *commands: Command, seconds: float | None, idempotent: bool = True) -> list[Any]:
        """Send commands about names of one slot, the first command's, and return their replies."""

        async def call(node: Connections, left: float, asking: bool) -> list[Any]:
            return await node.ask(*commands, seconds=left, idempotent=idempotent, asking=asking)

        return await self._at_home(_name(commands), call, seconds, idempotent=idempotent)

    async def transact(self, *commands: Command, seconds: float | None, idempotent: bool = True) -> list[Any]:
        """Send commands about names of one slot that take effect together or not at all."""

        async def call(node: Connections, left: float, asking: bool) -> list[Any]:
            return await node.transact(*commands, seconds=left, idempotent=idempotent, asking=asking)

        return await self._at_home(_name(commands), call, seconds, idempotent=idempotent)

    async def if_equal(self, name: bytes, value: bytes, *commands: Command, seconds: float | None) -> bool:
        """Run commands about names of the same slot as one transaction while this value stands there."""

        async def call(node: Connections, left: float, asking: bool) -> bool:
            return await node.if_equal(name, value, *commands, seconds=left, asking=asking)

        return await self._at_home(name, call, seconds, idempotent=False)

    async def values(
        self, names: Sequence[bytes], *, times: bool, seconds: float | None
    ) -> dict[bytes, Value | BackendError]:
        """What stands under these names: of each slot in one command, of each node in one go, from all at once.

        What a node does not say is the error of its own names alone.
        """
        due = due_in(seconds)
        parts: dict[Place | None, dict[int, list[bytes]]] = {}
        for name in names:
            slot = key_slot(name)
            parts.setdefault(self._slots[slot], {}).setdefault(slot, []).append(name)
        found: dict[bytes, Value | BackendError] = {}

        async def one(name: bytes) -> None:
            try:
                found[name] = _value(await self.ask(*_read(name, times), seconds=left_until(due)), times)
            except BackendError as error:
                found[name] = error

        async def some(place: Place | None, slots: Iterable[list[bytes]]) -> None:
            node, here = self._nodes.get(place) if place is not None else None, [*slots]
            flat = [name for those in here for name in those]
            lefts: list[Command] = [("PTTL", name) for name in flat] if times else []
            try:
                if node is None:
                    raise Unavailable("it is not known yet which node has the slot", backend="redis")
                gets: list[Command] = [("MGET", *those) for those in here]
                answers = await node.ask(*gets, *lefts, seconds=left_until(due))
            except (Elsewhere, Unavailable):
                await asyncio.gather(*(one(name) for name in flat))  # each finds its way
                return
            except BackendError as error:
                self._learn_soon()
                found.update(dict.fromkeys(flat, error))
                return
            contents = [content for those in answers[: len(here)] for content in those]
            left = answers[len(here) :] if times else [-1] * len(flat)
            found.update(zip(flat, zip(contents, left, strict=True), strict=True))

        await asyncio.gather(*(some(place, slots.values()) for place, slots in parts.items()))
        return found

    async def check(self, name: bytes, seconds: float | None) -> None:
        """Raise what is wrong with any primary, or with the cluster as a whole."""
        due = due_in(seconds)
        await self._learn(due)
        await asyncio.gather(*(node.ask(("PING",), seconds=left_until(due)) for node in self._nodes.values()))
        await self.ask(("EXISTS", name), seconds=left_until(due))  # a cluster that is not whole refuses what has a name

    def home(self, name: bytes) -> object:
        """The node that keeps this name, as far as known."""
        return self._slots[key_slot(name)]

    def hears(self, name: bytes) -> bool:
        """Whether the `speakers` tell when this name is changed: not where a slot is on its way to one beside them."""
        return key_slot(name) not in self._unheard

    def together(self, names: Sequence[bytes]) -> list[list[int]]:
        """The positions of those names that one transaction may change together: those of one slot."""
        parts: dict[int, list[int]] = {}
        for position, name in enumerate(names):
            parts.setdefault(key_slot(name), []).append(position)
        return list(parts.values())

    async def speakers(self, *, every: bool) -> list[Connections]:
        """Who has to be listened to: any one node for what is published, each for what it tracks itself."""
        await self._learn(due_in(self._connect_timeout))
        nodes, self._heard = list(self._nodes.values()), set(self._nodes)
        if not nodes:
            raise Unavailable("no node of the Redis Cluster is known", backend="redis")
        self._moved.clear()
        self._unheard.clear()
        return nodes if every else random.sample(nodes, 1)

    async def moved(self) -> None:
        """Return when there are other primaries than `speakers` knew."""
        await self._moved.wait()

    def close(self) -> None:
        """Cut everything. Calls under way end with `Unavailable`."""
        self._closed = True
        if self._learner is not None:
            self._learner.cancel()
        for node in (*self._nodes.values(), *self._retired):
            node.close()

    # Finding the way

    async def _at_home(
        self,
        name: bytes,
        call: Callable[[Connections, float, bool], Awaitable[T]],
        seconds: float | None,
        *,
        idempotent: bool,
    ) -> T:
        """Make the call at the node that has this name, or that is pointed to, until it answers."""
        due, slot, turns, pauses = due_in(seconds), key_slot(name), 0, Pauses()
        once: Place | None = None
        while True:
            place = once or await self._place(slot, due)
            try:
                return await call(self._node(place), left_until(due), once is not None)
            except Elsewhere as error:
                once = self._follow(slot, place, error)
                turns += 1
                if error.place is None or turns > _DIRECTLY:
                    await pauses.sleep()  # while the nodes disagree, or half of a slot has moved
            except DeadlineExceeded:
                self._learn_soon()
                raise
            except Unavailable as error:
                if isinstance(error, PoolExhausted):
                    raise
                self._learn_soon()
                if isinstance(error, BreakerOpen) or (error.outcome_unknown and not idempotent):
                    raise  # the next call has the new map
                await self._learn(due)
                if self._slots[slot] == place or self._closed:
                    raise
                once = None

    def _follow(self, slot: int, place: Place, error: Elsewhere) -> Place | None:
        """Note where the slot is now; the place, where it is to be asked there only this once."""
        if error.place is None:
            return None
        there = (error.place[0] or place[0], error.place[1])
        if error.once:
            if there not in self._heard:
                self._unheard.add(slot)
            return there
        self._slots[slot] = there
        self.moves += 1
        if there not in self._heard:
            self._moved.set()
        self._learn_soon()  # seldom does one slot move alone
        return None

    async def _place(self, slot: int, due: float) -> Place:
        place = self._slots[slot]
        if place is None:
            with self._learning.guard():
                await self._learn(due, must=True)
            place = self._slots[slot]
        if place is None:
            raise Unavailable(f"no node of the Redis Cluster has slot {slot}", backend="redis")
        return place

    def _node(self, place: Place) -> Connections:
        node = self._nodes.get(place)
        if self._closed:
            raise Unavailable("the connections to Redis are closed", backend="redis")
        if node is None:
            node = self._nodes[place] = Connections(
                replace(self.address, host=place[0], port=place[1], cluster=()),
                size=self._size,
                connect_timeout=self._connect_timeout,
                breaker=self._breaker(),
                metrics=self._metrics,
            )
        return node

    # Learning who has which slot

    async def _learn(self, due: float, *, must: bool = False) -> None:
        """Ask a node for the map, and its failure is raised where there is none. Not many times in a moment."""
        learner = self._learn_soon()
        if learner is None and not self._closed:
            soon = self._learnt_at + _LEARN_AGAIN_SECONDS
            await asyncio.sleep(max(0.0, min(soon, due) - asyncio.get_running_loop().time()))
            learner = self._learn_soon()
        if learner is None:
            return
        await asyncio.wait((learner,), timeout=left_until(due))
        if not learner.done():
            raise DeadlineExceeded("no node of the Redis Cluster said in time who has which slot", backend="redis")
        if not learner.cancelled() and (error := learner.exception()) is not None and (must or not self._nodes):
            raise error

    def _learn_soon(self) -> asyncio.Task[None] | None:
        if self._learner is not None and not self._learner.done():
            return self._learner
        now = asyncio.get_running_loop().time()
        if self._closed or (self._nodes and now - self._learnt_at < _LEARN_AGAIN_SECONDS):
            return None
        self._learnt_at = now
        # An empty context: what it learns is for all, and not bound by the time of whoever asked first.
        self._learner = asyncio.create_task(
            self._ask_for_slots(), name="kmp-redis-slots", context=contextvars.Context()
        )
        self._learner.add_done_callback(_retrieved)
        return self._learner

    async def _ask_for_slots(self) -> None:
        causes, refusal = [], None
        for place in sorted(self._known | set(self.address.cluster), key=self._promise):
            try:
                return self._take(place, await self._ask_one_for_slots(place))
            except Unavailable as error:
                causes.append(f"{place[0]}:{place[1]}: {error}")
            except AccessDenied as error:
                refusal = error  # of this node alone, where another one answers
        if refusal is not None:
            raise refusal
        raise Unavailable(f"no node of the Redis Cluster answers ({'; '.join(causes)})", backend="redis")

    def _promise(self, place: Place) -> tuple[bool, float]:
        """Those that answer first, and among them any."""
        node = self._nodes.get(place)
        return node is None or node.breaker.state != "closed", random.random()  # noqa: S311 - spreads load

    async def _ask_one_for_slots(self, place: Place) -> Any:
        channel = Channel()
        due = due_in(self._connect_timeout)
        await channel.connect(due, replace(self.address, host=place[0], port=place[1], cluster=()))
        try:
            (answer,) = await channel.ask([pack_command(("CLUSTER", "SLOTS"))], 1, due)
        except DeadlineExceeded as error:
            raise Unavailable(str(error), backend="redis") from error
        finally:
            channel.discard()
        if isinstance(answer, ResponseError):
            refusal = ERRORS.translate(answer)
            if isinstance(refusal, Unavailable | AccessDenied):
                raise refusal from answer
            problem = f"{place[0]}:{place[1]} is no node of a Redis Cluster ({answer}); write redis:// for one server"
            raise BackendError(problem, backend="redis") from answer
        return answer

    def _take(self, asked: Place, answer: Any) -> None:
        """Have the map as this node sees it, and let go of nodes that are no primaries any more."""
        slots: list[Place | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        known: set[Place] = set()
        for first, last, *nodes in answer:
            places = [_place_of(one, asked) for one in nodes]
            known.update(places)
            slots[first : last + 1] = [places[0]] * (last + 1 - first)
        if not known:
            raise Unavailable("it has no slots yet", backend="redis")
        primaries = {place for place in slots if place is not None}
        if primaries != self._heard:  # not the nodes that calls were sent to meanwhile
            self._moved.set()
        if slots != self._slots:
            self.moves += 1
        self._slots, self._known = slots, known
        for place in set(self._nodes) - primaries:
            node = self._nodes.pop(place)
            node.retire()
            self._retired.add(node)
        for place in primaries:
            self._node(place)


Servers = Connections | Cluster
"""One server, or many that share the slots."""


def _name(commands: Sequence[Command]) -> bytes:
    name = commands[0][1]
    assert isinstance(name, bytes)
    return name


def _read(name: bytes, times: bool) -> tuple[Command, ...]:
    return (("GET", name), ("PTTL", name)) if times else (("GET", name),)


def _value(answers: list[Any], times: bool) -> Value:
    return answers[0], answers[1] if times else -1


def _place_of(node: Any, asked: Place) -> Place:
    # Without a name, it is where we asked.
    host = node[0].decode() if node[0] else ""
    return host if host not in ("", "?") else asked[0], int(node[1])


def _retrieved(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()  # whoever waited for it may be gone
