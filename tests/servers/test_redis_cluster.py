"""On a Redis Cluster the cache keeps its contract, finds each key's node, and follows where slots and primaries go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any

import pytest
import redis.asyncio
from redis.crc import key_slot
from redis.exceptions import AuthenticationError

import testbed
from kmp_core.errors import (
    BackendError,
    ConfigurationError,
    Conflict,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from kmp_core.secrets import Secret
from kmp_core.testing import Make, Wire
from kmp_core.testing.wire import Heart
from kmp_storage.redis import RedisCache, RedisSettings
from kmp_storage.redis.channel import Channel
from kmp_storage.redis.cluster import Cluster
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.testing.cache import eventually
from kmp_storage.testing.faults import redis_places
from kmp_storage.testing.shared_cache import SharedCacheContract
from redis_bed import (
    DESTRUCTIVE,
    DESTRUCTIVE_IN_A_CLUSTER,
    FOREIGN_CHANNELS,
    FOREIGN_KEYS,
    IN_A_CLUSTER,
    WHOLE_SERVER,
    Moving,
    allowed,
    client_of,
    configure,
    kill_node,
    primary_of,
    root_of,
    start_node,
)

PASSWORD = Secret("three nodes")
KEYS = [f"key{number}" for number in range(60)]


def administrator_of(cluster: testbed.Server) -> str:
    # Some of the nodes are enough, and one of them may be away.
    return f"redis+cluster://default:{cluster.password}@127.0.0.1:1,127.0.0.1:{cluster.nodes[1]}"


def url(cluster: testbed.Server, project: str = "acme") -> str:
    return f"redis+cluster://{project}:three%20nodes@127.0.0.1:1,127.0.0.1:{cluster.nodes[2]},{cluster.address}"


def cache_at(cluster: testbed.Server, **settings: Any) -> RedisCache:
    loaded = RedisSettings.load(**{"outage": "error", "timeout": "5s", "connect_timeout": "5s", **settings})
    return RedisCache(url(cluster), project="acme", settings=loaded)


def way_of(cache: RedisCache) -> Cluster:
    assert isinstance(cache._connections, Cluster)
    return cache._connections


def name_of(key: str) -> bytes:
    return f"acme:v:{{.{key}}}".encode()


@pytest.fixture
async def admin(redis_cluster: testbed.Server) -> AsyncIterator[RedisProvisioner]:
    async with RedisProvisioner(administrator_of(redis_cluster)) as admin:
        for project in ("acme", "acme2"):
            await admin.provision(project, password=PASSWORD)
        yield admin
        for project in ("acme", "acme2"):
            await admin.deprovision(project, force=True)


@pytest.fixture
def cluster(admin: RedisProvisioner, redis_cluster: testbed.Server) -> testbed.Server:
    """A cluster on which both projects have their users."""
    return redis_cluster


async def load() -> bytes:
    return b"loaded"


# The contract


class TestRedisClusterCache(SharedCacheContract):
    @pytest.fixture
    def make(self, cluster: testbed.Server) -> Make:
        return lambda project="acme": RedisCache(url(cluster, project), project=project)

    @pytest.fixture
    def address(self, cluster: testbed.Server) -> str:
        return url(cluster)


class TestRedisClusterCacheWithANearOne(SharedCacheContract):
    @pytest.fixture
    def make(self, cluster: testbed.Server) -> Make:
        settings = RedisSettings.load(near_max_bytes=1 << 20)
        return lambda project="acme": RedisCache(url(cluster, project), project=project, settings=settings)

    @pytest.fixture
    def address(self, cluster: testbed.Server, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setenv("KMP_STORAGE_REDIS_NEAR_MAX_BYTES", str(1 << 20))
        return url(cluster)


# The way to a key


async def calls_of(cluster: testbed.Server, command: str) -> int:
    """How often the nodes ran this command since they were told to forget what they ran."""
    count = 0
    for port in cluster.nodes:
        async with root_of(cluster, port) as client:
            count += int((await client.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"])
    return count


async def test_gets_of_one_moment_are_one_exchange_with_each_node(
    cluster: testbed.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with cache_at(cluster) as cache:
        for key in KEYS:
            assert await cache.set(key, key.encode())
        for port in cluster.nodes:
            async with root_of(cluster, port) as client:
                await client.config_resetstat()
        exchanges, ask = 0, Channel.ask

        async def counted(channel: Channel, *arguments: Any) -> Any:
            nonlocal exchanges
            exchanges += 1
            return await ask(channel, *arguments)

        monkeypatch.setattr(Channel, "ask", counted)
        assert await asyncio.gather(*map(cache.get, KEYS)) == [key.encode() for key in KEYS]
        assert exchanges == 1 + 3, "a lonely one, then one for each node"
        slots = {key_slot(name_of(key)) for key in KEYS[1:]}
        assert (await calls_of(cluster, "get"), await calls_of(cluster, "mget")) == (1, len(slots))


async def test_keys_of_several_slots_are_deleted_by_one_call(cluster: testbed.Server) -> None:
    async with cache_at(cluster) as cache:
        for key in KEYS:
            await cache.set(key, b"1")
        assert await cache.delete(*KEYS, "another") == len(KEYS)
        assert await asyncio.gather(*map(cache.get, KEYS)) == [None] * len(KEYS)


async def test_a_key_with_braces_keeps_what_belongs_to_it_in_one_slot(cluster: testbed.Server) -> None:
    async with cache_at(cluster) as cache:
        for key in ("{", "}", "{}", "a{b}c", "}{", "{{x}}", "ключ"):
            assert await cache.get_or_load(key, load, ttl="1m") == b"loaded"
            assert await cache.increment(f"count {key}") == 1
            assert (await cache.limit(key, rate=1, per="1m")).allowed
            async with cache.lock(key):
                assert await cache.delete(key) == 1


async def test_answers_reach_their_callers_though_others_are_cancelled(cluster: testbed.Server) -> None:
    async with cache_at(cluster, timeout="20s", connect_timeout="20s") as cache:
        for key in KEYS:
            await cache.set(key, key.encode())
        way, on_their_way = way_of(cache), 0

        async def alone(key: str) -> bool:
            (answer,) = await way.ask(("GET", name_of(key)), seconds=20)
            return bool(answer == b"\x01" + key.encode())

        async def together(key: str) -> bool:
            return await cache.get(key) == key.encode()

        for number in range(300):
            calls = [asyncio.create_task(alone(key)) for key in KEYS[:20]]
            calls += [asyncio.create_task(together(key)) for key in KEYS[20:]]
            for _ in range(1 + number % 7):
                await asyncio.sleep(0)
            on_their_way += way.in_use
            for call in calls[:: 1 + number % 5]:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [one for one in outcomes if one is not True and not isinstance(one, asyncio.CancelledError)] == []
        assert on_their_way > 1000, "too few were on their way when some were cancelled"


@pytest.fixture
async def moving(cluster: testbed.Server) -> AsyncIterator[Moving]:
    slot = key_slot(name_of("moved"))
    source = await primary_of(cluster, slot)
    target = next(port for port in [await primary_of(cluster, n) for n in (0, 6000, 12000)] if port != source)
    moving = Moving(cluster, slot, source, target)
    await moving.begin()
    yield moving
    await moving.end()


async def test_a_slot_on_the_move_is_followed(moving: Moving) -> None:
    async with cache_at(moving.cluster) as cache:
        assert way_of(cache)._slots[moving.slot] == ("127.0.0.1", moving.source)
        assert await cache.get("moved") is None  # not here, so asked there
        assert (await cache.limit("moved", rate=2, per="1m")).left == 1
        await moving.write(name_of("moved").decode(), b"\x01there")
        assert await cache.get("moved") == b"there"
        assert await asyncio.gather(*map(cache.get, ("moved", *KEYS))) == [b"there"] + [None] * len(KEYS)
        # What takes several names waits until they are in one place again.
        storing = asyncio.ensure_future(cache.set("moved", b"new"))
        loading = asyncio.ensure_future(cache.get_or_load("moved", load, ttl="1m"))
        await eventually(moving.was_asked_to_try_again)
        assert not storing.done()
        await moving.end()
        assert await storing
        assert await loading in (b"there", b"new", b"loaded")
        assert await cache.set("moved", b"newer")
        assert way_of(cache)._slots[moving.slot] == ("127.0.0.1", moving.target)


async def test_who_has_an_old_map_is_shown_the_way(moving: Moving) -> None:
    async with cache_at(moving.cluster) as cache:
        await moving.end()
        assert await cache.set("moved", b"1")
        assert await cache.get("moved") == b"1"
        async with cache.lock("moved"):
            assert await cache.delete("moved") == 1


async def test_what_is_to_be_made_good_goes_along_with_its_slot(moving: Moving) -> None:
    async with cache_at(moving.cluster, outage="miss") as cache:
        moving.cluster.pause()
        try:
            assert await cache.delete("moved", timeout=0.3) == 0
        finally:
            moving.cluster.unpause()
        await moving.cluster.wait_until_ready()
        elsewhere = [key for key in KEYS if way_of(cache).home(name_of(key)) != ("127.0.0.1", moving.source)]
        assert await cache.get(elsewhere[0]) is None
        await moving.write(name_of("moved").decode(), b"\x01old")
        await moving.end()
        assert (await cache.limit("moved", rate=2, per="1m")).allowed  # learns where the slot is now
        assert await cache.get("moved") is None


# A primary that dies


async def test_a_killed_primary_is_a_miss_for_its_own_keys_until_its_replica_took_over(
    cluster: testbed.Server,
) -> None:
    victim = await primary_of(cluster, key_slot(name_of("key0")))
    async with cache_at(cluster, outage="miss", timeout="1s", near_max_bytes=1 << 20) as cache:
        for key in KEYS:
            assert await cache.set(key, b"before")
        await eventually(lambda: replicated(cluster))
        hers = [key for key in KEYS if way_of(cache).home(name_of(key)) == ("127.0.0.1", victim)]
        others = [key for key in KEYS if key not in hers]
        kill_node(cluster, victim)
        try:
            with pytest.raises(Unavailable):
                await cache.check()
            assert await asyncio.gather(*map(cache.get, KEYS)) == [None if key in hers else b"before" for key in KEYS]
            assert await cache.get_or_load(hers[0], load, ttl="1m") == b"loaded"
            await cache.delete(hers[1], others[1])
            assert await cache.get(others[1]) is None
            with pytest.raises(Unavailable):
                await cache.increment(hers[2])

            async def followed() -> bool:
                return await cache.set(hers[0], b"after")

            await eventually(followed, within=60)
            assert await cache.get(hers[0]) == b"after"
            assert await cache.get(hers[1]) is None, "what was deleted meanwhile came back"
            assert await cache.get(hers[3]) == b"before"
            await cache.check()
        finally:
            start_node(cluster, victim)
        await cluster.wait_until_ready()
        async with client_of(victim, "acme", PASSWORD) as client:
            assert await client.ping(), "a node that started again forgot its users"


async def test_a_call_whose_node_is_gone_finds_the_new_one_within_its_own_time(moving: Moving) -> None:
    cluster, known = moving.cluster, [port for port in moving.cluster.nodes if port != moving.source]
    async with cache_at(cluster) as cache:
        await moving.end()

        async def all_know() -> bool:
            return {await primary_of(cluster, moving.slot, asked=port) for port in known} == {moving.target}

        await eventually(all_know)
        kill_node(cluster, moving.source)
        try:
            assert await cache.set("moved", b"2")
            assert await cache.get("moved") == b"2"
        finally:
            start_node(cluster, moving.source)
    await cluster.wait_until_ready()


async def test_what_a_node_counted_is_not_counted_again(cluster: testbed.Server) -> None:
    others = [(testbed.LOOPBACK, port) for port in cluster.nodes[1:]]
    settings = RedisSettings.load(timeout="20s", connect_timeout="20s")
    names = [b"127.0.0.1"]

    def named(said: bytes, ports: Mapping[int, int]) -> bytes:
        return redis_places(said, ports).replace(b"$9\r\n127.0.0.1", b"$9\r\n" + names[-1])

    async with (
        Wire(testbed.LOOPBACK, cluster.port, *others, translate=named) as wire,
        RedisCache(
            f"redis+cluster://acme:three%20nodes@127.0.0.1:{wire.port}", project="acme", settings=settings
        ) as cache,
        cache_at(cluster) as other,
    ):
        assert await cache.increment("counter") == 1
        wire.black_hole()
        call = asyncio.ensure_future(cache.increment("counter"))

        async def counted() -> bool:
            return await other.get("counter") == b"2"

        await eventually(counted)
        names.append(b"localhost")  # from now on the key's home is another, as after a failover
        wire.drop()
        await wire.heal()
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.outcome_unknown
        assert await other.increment("counter") == 3


async def replicated(cluster: testbed.Server) -> bool:
    """Whether every replica has what its primary acknowledged."""
    for port in cluster.nodes:
        async with root_of(cluster, port) as client:
            if (await client.info("replication"))["role"] == "master" and await client.wait(1, 1000) < 1:
                return False
    return True


async def test_a_cluster_that_is_away_is_used_when_it_comes(cluster: testbed.Server) -> None:
    cluster.kill()
    try:
        with pytest.raises(Unavailable, match="no node of the Redis Cluster answers"):
            await cache_at(cluster).open()
        async with cache_at(cluster, outage="miss", timeout="1s") as cache:
            assert await cache.get("key") is None
            cluster.start_again()
            await cluster.wait_until_ready()

            async def back() -> bool:
                return await cache.set("key", b"1")

            await eventually(back, within=5)
            assert await cache.get("key") == b"1"
    finally:
        cluster.start_again()
        await cluster.wait_until_ready()


async def test_every_call_ends_in_time_though_no_node_says_anything(cluster: testbed.Server) -> None:
    loop = asyncio.get_running_loop()
    async with cache_at(cluster) as cache:
        for key in KEYS:
            await cache.set(key, b"1")
        cluster.pause()
        try:
            calls = [
                cache.get("key", timeout=0.3),
                cache.set("key", b"1", timeout=0.3),
                cache.delete(*KEYS, timeout=0.3),
            ]
            calls += [cache.get(key, timeout=0.3) for key in KEYS]
            began = loop.time()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            took = loop.time() - began
        finally:
            cluster.unpause()
        assert all(isinstance(outcome, BackendError) for outcome in outcomes)
        assert took < 2, "somebody waited for longer than the call may take"
    await cluster.wait_until_ready()


@pytest.mark.parametrize("ending", ["deadline", "cancellation"])
async def test_a_delete_of_many_slots_ends_in_time_and_leaves_no_old_value_behind(
    cluster: testbed.Server, ending: str
) -> None:
    loop, keys = asyncio.get_running_loop(), [f"key{number}" for number in range(1000)]
    async with cache_at(cluster, outage="miss", timeout="20s") as cache:
        for key in keys:
            await cache.set(key, b"old")
        cluster.pause()
        try:
            async with Heart() as heart:
                began = loop.time()
                call = asyncio.ensure_future(cache.delete(*keys, timeout=0.3 if ending == "deadline" else None))
                if ending == "cancellation":
                    await eventually(lambda: _is(way_of(cache).in_use > 0))
                    call.cancel()
                await asyncio.wait((call,))
                took = loop.time() - began
        finally:
            cluster.unpause()
        await cluster.wait_until_ready()
        assert took - heart.stalled(began, began + took) < 1.5, "each part took its time anew"
        # What was on its way may take effect, what was not sent did not.
        assert await asyncio.gather(*map(cache.get, keys)) == [None] * len(keys)


async def test_a_delete_goes_on_at_the_other_nodes_while_one_is_gone(
    cluster: testbed.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, homes, home = [f"key{number}" for number in range(600)], 0, Cluster.home
    victim = await primary_of(cluster, key_slot(name_of("key0")))

    def counted(way: Cluster, name: bytes) -> object:
        nonlocal homes
        homes += 1
        return home(way, name)

    patient = {"timeout": "20s", "connect_timeout": "20s"}
    async with cache_at(cluster, outage="miss", **patient) as cache, cache_at(cluster, **patient) as strict:
        await asyncio.gather(*(cache.set(key, b"old") for key in keys))
        await eventually(lambda: replicated(cluster))
        hers = [key for key in keys if way_of(cache).home(name_of(key)) == ("127.0.0.1", victim)]
        others = [key for key in keys if key not in hers]
        assert min(len(hers), len(others)) > 100
        await configure(cluster, {"cluster-replica-no-failover": "yes"}, but=victim)  # not yet
        kill_node(cluster, victim)
        try:
            assert await cache.delete(*keys) == len(others)
            with pytest.raises(Unavailable):
                await strict.delete(*keys)
            for port in set(cluster.nodes) - {victim}:
                async with root_of(cluster, port) as root:
                    if (await root.info("replication"))["role"] == "master":
                        assert await root.keys("acme:v:*") == []
            monkeypatch.setattr(Cluster, "home", counted)
            assert await cache.get(others[0]) is None
            assert homes <= 3, "a get at one node looked through what is pending for another"
            monkeypatch.undo()
            await configure(cluster, {"cluster-replica-no-failover": "no"}, but=victim)

            async def followed() -> bool:
                return await cache.set("marker", b"1") and await cache.set(f"{{{hers[0]}}}", b"1")

            await eventually(followed, within=60)
            assert await asyncio.gather(*map(cache.get, hers)) == [None] * len(hers)
        finally:
            start_node(cluster, victim)
            await cluster.wait_until_ready()
            await configure(cluster, {"cluster-replica-no-failover": "no"})


async def _is(truth: bool) -> bool:
    return truth


# Beside the cluster's keys


async def live(cache: RedisCache) -> None:
    async def is_live() -> bool:
        assert cache._near is not None
        return cache._near.live

    await eventually(is_live)


async def kept(cache: RedisCache, key: str, value: bytes) -> None:
    async def holds() -> bool:
        assert cache._near is not None
        return await cache.get(key) == value and cache._near.find(key) == value

    await eventually(holds)


async def test_what_is_kept_near_hears_of_changes_at_every_node(cluster: testbed.Server) -> None:
    settings = {"near_max_bytes": 1 << 20, "near_ttl": "1h"}
    async with cache_at(cluster, **settings) as ours, cache_at(cluster) as theirs:
        await live(ours)
        for key in KEYS:
            await theirs.set(key, b"1")
            await kept(ours, key, b"1")
        for key in KEYS:
            await theirs.set(key, b"2")

        async def seen() -> bool:
            return set(await asyncio.gather(*map(ours.get, KEYS))) == {b"2"}

        await eventually(seen, within=5)


async def test_on_a_cluster_of_its_own_every_node_says_what_changed(
    admin: RedisProvisioner, cluster: testbed.Server
) -> None:
    await admin.provision("acme", password=PASSWORD, placement="dedicated")
    async with cache_at(cluster, near_max_bytes=1 << 20, near_ttl="1h", near_tracking=True) as cache:
        await live(cache)
        for key in KEYS:
            await cache.set(key, b"1")
            await kept(cache, key, b"1")
        for key in KEYS:  # by somebody who says nothing on the channel
            await way_of(cache).ask(("SET", name_of(key), b"\x012"), seconds=5)

        async def seen() -> bool:
            return set(await asyncio.gather(*map(cache.get, KEYS))) == {b"2"}

        await eventually(seen, within=5)


@pytest.fixture
def own_cluster() -> Iterator[testbed.Server]:
    """A cluster whose nodes may change for good."""
    cluster = testbed.start("redis_cluster", testbed.RECIPES["redis_cluster"])
    yield cluster
    cluster.stop()


@pytest.mark.parametrize("told", ["by a call", "by the map"])
async def test_a_primary_that_joins_is_heard_too(own_cluster: testbed.Server, told: str) -> None:
    cluster, key = own_cluster, "moved"
    patient = RedisSettings.load(timeout="20s", connect_timeout="20s")
    async with RedisProvisioner(administrator_of(cluster), settings=patient) as admin:
        await admin.provision("acme", password=PASSWORD, placement="dedicated")
    slot = key_slot(name_of(key))
    source = await primary_of(cluster, slot)
    replica = await a_replica_of_another(cluster, source)
    async with root_of(cluster, replica) as newcomer, root_of(cluster, source) as known:
        await become_primary(newcomer, replica, known)
    moving, place = Moving(cluster, slot, source, replica), ("127.0.0.1", replica)
    address = f"redis+cluster://acme:three%20nodes@127.0.0.1:{source}"
    settings = RedisSettings.load(near_max_bytes=1 << 20, near_ttl="1h", near_tracking=True, timeout="5s")
    async with RedisCache(address, project="acme", settings=settings) as cache:
        await live(cache)
        await moving.begin()
        if told == "by the map":
            assert await cache.get(key) is None
            assert place in way_of(cache)._nodes, "it was not sent there"
            await moving.write(f"acme:l:{{.{key}}}", b"-")  # so that both are in one place
            for value in (b"there", b"still there"):  # at a node that nobody listens to yet
                await moving.write(name_of(key).decode(), b"\x01" + value)
                assert await cache.get(key) == value, "an answer was kept whose change nobody hears"
            for value in (b"there", b"still there"):
                await moving.write(name_of(key).decode(), b"\x01" + value)
                assert await cache.get_or_load(key, load, ttl="1h") == value, (
                    "an answer was kept whose change nobody hears"
                )
        await moving.end()
        if told == "by the map":

            async def learnt() -> bool:
                await way_of(cache)._learn(asyncio.get_running_loop().time() + 5)
                return way_of(cache).home(name_of(key)) == place

            await eventually(learnt)
        assert await cache.set(key, b"1")
        await kept(cache, key, b"1")
        await way_of(cache).ask(("SET", name_of(key), b"\x012"), seconds=5)  # by somebody who says nothing himself

        async def seen() -> bool:
            return await cache.get(key) == b"2"

        await eventually(seen, within=5)


async def a_replica_of_another(cluster: testbed.Server, primary: int) -> int:
    for port in cluster.nodes:
        async with root_of(cluster, port) as client:
            state = await client.info("replication")
        if state["role"] == "slave" and state["master_port"] != primary:
            return port
    raise AssertionError("there is no replica")


async def become_primary(replica: redis.asyncio.Redis, port: int, known: redis.asyncio.Redis) -> None:
    """Leave the cluster, and come back as a primary that has no slot yet."""
    await replica.execute_command("CLUSTER RESET HARD")
    name, bus = await replica.execute_command("CLUSTER MYID"), await replica.config_get("cluster-port")
    await known.execute_command("CLUSTER MEET", "127.0.0.1", port, bus["cluster-port"])

    async def welcome() -> bool:
        state, nodes = await replica.execute_command("CLUSTER INFO"), await known.execute_command("CLUSTER NODES")
        return name in str(nodes) and state["cluster_state"] == "ok"

    await eventually(welcome, within=20)


# Its users


async def test_every_node_refuses_what_is_not_the_project_s(cluster: testbed.Server) -> None:
    commands = [*FOREIGN_KEYS, *FOREIGN_CHANNELS, *WHOLE_SERVER, *DESTRUCTIVE, *IN_A_CLUSTER, *DESTRUCTIVE_IN_A_CLUSTER]
    for port in cluster.nodes:
        async with client_of(port, "acme", PASSWORD) as client:
            assert await allowed(client, commands) == [], port


async def test_without_the_guard_the_cluster_shows_what_it_has(cluster: testbed.Server) -> None:
    async with root_of(cluster, cluster.port) as root, client_of(cluster.port, "acme", PASSWORD) as client:
        await root.execute_command("ACL", "SETUSER", "acme", "+@all", "allkeys", "allchannels")
        assert len(await allowed(client, IN_A_CLUSTER)) == len(IN_A_CLUSTER)


async def test_keys_on_any_node_keep_a_project_from_being_removed(
    admin: RedisProvisioner, cluster: testbed.Server
) -> None:
    for key in ("a", "b", "c", "d", "e", "f"):
        async with cache_at(cluster) as cache:
            await cache.set(key, b"1")
        with pytest.raises(Conflict, match="force=True"):
            await admin.deprovision("acme")
        async with cache_at(cluster) as cache:
            await cache.delete(key)
    async with cache_at(cluster) as cache:
        for key in KEYS:
            await cache.set(key, b"1")
    assert await admin.deprovision("acme", force=True)
    for port in cluster.nodes:
        async with client_of(port, "acme", PASSWORD) as client:
            with pytest.raises(AuthenticationError):
                await client.ping()
        async with root_of(cluster, port) as root:
            assert await root.keys("acme:*") == []


async def test_a_wrong_password_is_no_outage(cluster: testbed.Server) -> None:
    wrong = url(cluster).replace("three%20nodes", "hunter2")
    with pytest.raises(Unauthenticated) as caught:
        await RedisCache(wrong, project="acme").open()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("refuses", [True, False])
async def test_a_seed_that_knows_nothing_is_passed_over(
    cluster: testbed.Server, lonely_node: testbed.Server, refuses: bool
) -> None:
    if not refuses:
        async with root_of(lonely_node, lonely_node.port) as root:
            await root.execute_command("ACL", "SETUSER", "acme", "on", f">{PASSWORD.reveal()}", "~acme:*", "+@all")
    address = f"redis+cluster://acme:three%20nodes@127.0.0.1:{lonely_node.port},127.0.0.1:{cluster.nodes[0]}"
    for _ in range(10):  # which one is asked first is left to chance
        async with RedisCache(address, project="acme", settings=RedisSettings.load(outage="error")) as cache:
            assert await cache.set("key", b"1")


@pytest.fixture
def lonely_node() -> Iterator[testbed.Server]:
    """A node that no cluster has met."""

    def command(password: str) -> list[str]:
        return ["redis-server", "--requirepass", password, "--cluster-enabled", "yes"]

    node = testbed.start("redis", testbed.Recipe("redis", 6379, testbed.redis_ready, command=command))
    yield node
    node.stop()


async def test_a_user_made_for_one_server_is_told_what_it_lacks(cluster: testbed.Server) -> None:
    for port in cluster.nodes:
        async with root_of(cluster, port) as root:
            await root.execute_command("ACL", "SETUSER", "acme", "-cluster|slots")
    with pytest.raises(PermissionDenied, match=r"cluster\|slots"):
        await RedisCache(url(cluster), project="acme").open()


async def test_a_cluster_spoken_to_as_one_server_says_how_it_is_written(cluster: testbed.Server) -> None:
    single = url(cluster).replace("redis+cluster", "redis").replace("127.0.0.1:1,", "").split(",")[0]
    async with RedisCache(single, project="acme") as cache:
        with pytest.raises(BackendError, match=r"redis\+cluster://"):
            for key in KEYS:
                await cache.set(key, b"1")


async def test_one_server_spoken_to_as_a_cluster_says_how_it_is_written(redis_server: testbed.Server) -> None:
    several = f"redis+cluster://default:{redis_server.password}@{redis_server.address}"
    with pytest.raises(BackendError, match="write redis:// for one server"):
        await RedisCache(several, project="acme").open()


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ("redis+cluster://one,two/1", "must not name a database"),
        ("redis+cluster://one,two:port", "a port that is no number"),
        ("redis+cluster:one", "lacks the two slashes"),
        ("rediss+cluster://app:hunter2@one?ssl=no", "takes no parameters"),
    ],
)
def test_a_wrong_url_is_named_and_its_secret_is_not(wrong: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"KMP_STORAGE_CACHE_URL: .*{problem}") as caught:
        RedisCache(wrong, project="acme")
    assert "hunter2" not in str(caught.value)


def test_a_cluster_needs_no_sentinel() -> None:
    with pytest.raises(ConfigurationError, match="unset KMP_STORAGE_REDIS_SENTINEL"):
        RedisCache("redis+cluster://one", project="acme", settings=RedisSettings.load(sentinel="primary"))


def test_the_nodes_of_a_url_are_read() -> None:
    address = RedisCache("rediss+cluster://app:hunter2@one,two:7000", project="acme").address
    assert (address.cluster, address.tls, address.user) == ((("one", 6379), ("two", 7000)), True, "app")
    assert "hunter2" not in repr(address)
