"""A service opens what it needs on demand and leaves in order."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import Protocol, Self

import pytest

from kmp_core import Context, Provider, Resource, Service, capability, deadline, plugins
from kmp_core.capability import spec_of
from kmp_core.errors import ConfigurationError, DeadlineExceeded, InvalidInput, LifecycleError, Unavailable
from kmp_core.secrets import SecretStore
from kmp_core.testing import fork


class Usable(Resource, Protocol):
    @abstractmethod
    async def use(self) -> str: ...


@capability("test.base", default="fake:base")
class Base(Usable, Protocol): ...


@capability("test.upper", default="fake:upper?needs=base")
class Upper(Usable, Protocol): ...


@capability("test.roof", default="fake:roof?needs=upper")
class Roof(Usable, Protocol): ...


@capability("test.side", default="fake:side")
class Side(Usable, Protocol): ...


CAPABILITIES = {"base": Base, "upper": Upper, "roof": Roof, "side": Side}


class Fake(Provider):
    """A provider that writes down what happens to it and does what its class variables say."""

    log: list[str]
    fail: dict[str, Exception]
    hang: set[str]
    gate: asyncio.Event | None

    def __init__(self, url: str, context: Context | None = None) -> None:
        self.name, _, needs = url.removeprefix("fake:").partition("?needs=")
        self.needs = needs.split(",") if needs else []
        self.context = context

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        return cls(url, context)

    async def use(self) -> str:
        self.ensure_open()
        return self.name

    async def _open(self) -> None:
        Fake.log.append(f"opening {self.name}")
        if Fake.gate is not None:
            await Fake.gate.wait()
        for need in self.needs:
            assert self.context is not None
            await self.context.get(CAPABILITIES[need])
        if self.name in Fake.fail:
            raise Fake.fail[self.name]
        Fake.log.append(f"open {self.name}")

    async def _close(self) -> None:
        Fake.log.append(f"close {self.name}")
        while self.name in Fake.hang:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if "deaf" not in Fake.hang:
                    raise

    async def _check(self) -> None: ...


class Intaking(Fake):
    async def start(self) -> None:
        Fake.log.append(f"start {self.name}")

    async def drain(self, *, timeout=None) -> None:
        Fake.log.append(f"drain {self.name}")
        if f"drain {self.name}" in Fake.hang:
            try:
                await asyncio.sleep(3600)
            finally:
                Fake.log.append(f"give up {self.name}")


@pytest.fixture(autouse=True)
def fakes(kmp_environment):
    Fake.log, Fake.fail, Fake.hang, Fake.gate = [], {}, set(), None
    plugins.forget()
    for protocol in CAPABILITIES.values():
        plugins.register(protocol, "fake", Fake)
    yield
    plugins.forget()


async def until(condition) -> None:
    async with deadline("10s"):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await asyncio.sleep(0.001)


async def test_opens_dependencies_first_and_closes_in_reverse(kmp_service):
    async with kmp_service as service:
        assert await (await service.get(Roof)).use() == "roof"
        await service.get(Side)
    opened = [line for line in Fake.log if line.startswith("open ")]
    assert opened == ["open base", "open upper", "open roof", "open side"]
    assert Fake.log[-4:] == ["close side", "close roof", "close upper", "close base"]


async def test_what_depends_on_others_closes_before_them_even_where_it_opened_earlier(kmp_service):
    async with kmp_service as service:
        side = await service.get(Side)
        assert isinstance(side, Fake)
        await side.context.get(Base)
    assert Fake.log[-2:] == ["close side", "close base"]


async def test_everybody_who_asks_while_it_opens_waits_for_the_same_opening(kmp_service):
    async with kmp_service as service:
        providers = await asyncio.gather(*(service.get(Base) for _ in range(20)))
        assert len(set(map(id, providers))) == 1
        assert await service.get(Base) is providers[0]
    assert Fake.log.count("opening base") == 1


async def test_a_caller_that_is_cancelled_leaves_the_others_waiting_undisturbed(kmp_service):
    Fake.gate = asyncio.Event()
    async with kmp_service as service:
        first = asyncio.create_task(service.get(Base))
        await until(lambda: Fake.log)
        second = asyncio.create_task(service.get(Base))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        Fake.gate.set()
        assert await (await second).use() == "base"


async def test_the_first_callers_deadline_does_not_bound_the_shared_opening(kmp_service):
    Fake.gate = asyncio.Event()
    async with kmp_service as service:
        with pytest.raises(DeadlineExceeded):
            async with deadline("10ms"):
                await service.get(Base)
        Fake.gate.set()
        assert await (await service.get(Base)).use() == "base"
    assert Fake.log.count("opening base") == 1


async def test_when_one_fails_to_open_what_it_opened_is_closed_and_a_later_get_tries_again(kmp_service):
    Fake.fail["roof"] = Unavailable("down")
    async with kmp_service as service:
        with pytest.raises(Unavailable, match="down"):
            await service.get(Roof)
        assert [line for line in Fake.log if line.startswith("close")] == ["close roof", "close upper", "close base"]
        Fake.fail.clear()
        assert await (await service.get(Roof)).use() == "roof"


async def test_a_failed_opening_leaves_open_what_the_service_asked_for_itself(kmp_service):
    Fake.fail["upper"] = Unavailable("down")
    async with kmp_service as service:
        base = await service.get(Base)
        with pytest.raises(Unavailable):
            await service.get(Upper)
        assert await base.use() == "base"


async def test_a_failed_opening_leaves_open_what_others_depend_on(kmp_service, kmp_environment):
    kmp_environment.set("KMP_TEST_SIDE_URL", "fake:side?needs=base")
    Fake.fail["side"] = Unavailable("down")
    async with kmp_service as service:
        await service.get(Upper)
        with pytest.raises(Unavailable):
            await service.get(Side)
        assert "close base" not in Fake.log


async def test_an_error_while_rolling_back_does_not_hide_why_opening_failed(kmp_service):
    class Clumsy(Fake):
        async def _close(self) -> None:
            raise RuntimeError("a second fault")

    plugins.register(Base, "fake", Clumsy)
    Fake.fail["base"] = Unavailable("the reason")
    async with kmp_service as service:
        with pytest.raises(Unavailable, match="the reason") as raised:
            await service.get(Base)
    assert any("a second fault" in note for note in raised.value.__notes__)


async def test_a_circle_of_dependencies_is_named(kmp_service, kmp_environment):
    kmp_environment.set("KMP_TEST_BASE_URL", "fake:base?needs=roof")
    async with kmp_service as service:
        async with deadline("10s"):
            with pytest.raises(ConfigurationError, match=r"base needs test\.roof needs test\.upper needs test\.base"):
                await service.get(Roof)


async def test_a_circle_that_two_callers_enter_at_once_is_found_too(kmp_service, kmp_environment):
    kmp_environment.set("KMP_TEST_BASE_URL", "fake:base?needs=upper")
    Fake.gate = asyncio.Event()
    async with kmp_service as service:
        both = [asyncio.create_task(service.get(Base)), asyncio.create_task(service.get(Upper))]
        await until(lambda: len(Fake.log) == 2)
        Fake.gate.set()
        async with deadline("10s"):
            outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert any(isinstance(outcome, ConfigurationError) for outcome in outcomes)
    assert all(isinstance(outcome, ConfigurationError) for outcome in outcomes)


async def test_nothing_is_opened_any_more_while_the_service_closes(kmp_service):
    class Late(Fake):
        async def _close(self) -> None:
            with pytest.raises(LifecycleError, match="closing: nothing is opened any more"):
                await self.context.get(Side)
            await super()._close()

    plugins.forget()
    plugins.register(Base, "fake", Late)
    plugins.register(Side, "fake", Fake)
    async with kmp_service as service:
        await service.get(Base)
    assert [line for line in Fake.log if "side" in line] == []
    assert Fake.log[-1] == "close base"


async def test_a_replaced_provider_is_used_opened_and_closed(kmp_service):
    provider = Fake("fake:mine")
    kmp_service.replace(Base).by(provider)
    async with kmp_service as service:
        assert await service.get(Base) is provider
        assert await (await service.get(Upper)).use() == "upper"
    assert provider.state == "closed"


async def test_a_replaced_provider_that_is_open_already_is_left_open(kmp_service):
    async with Fake("fake:mine") as provider:
        kmp_service.replace(Base).by(provider)
        async with kmp_service as service:
            assert await service.get(Base) is provider
        assert provider.state == "open"


async def test_replacing_after_the_first_get_is_refused(kmp_service):
    async with kmp_service as service:
        await service.get(Base)
        with pytest.raises(LifecycleError, match="before the first get"):
            service.replace(Base).by(Fake("fake:mine"))


async def test_what_is_no_capability_is_refused_with_what_is_known(kmp_service):
    async with kmp_service as service:
        with pytest.raises(InvalidInput, match="int is not a capability"):
            await service.get(int)  # type: ignore[type-var]


async def test_a_service_is_used_inside_async_with_only(kmp_service):
    with pytest.raises(LifecycleError, match="async with"):
        await kmp_service.get(Base)
    async with kmp_service as service:
        with pytest.raises(LifecycleError, match="open already"):
            await service.__aenter__()
    with pytest.raises(LifecycleError):
        await kmp_service.run()


async def test_a_closed_service_may_be_entered_again_and_opens_everything_anew(kmp_service):
    for _ in range(2):
        async with kmp_service as service:
            await service.get(Base)
            assert not service.health.startup().healthy
    assert Fake.log == ["opening base", "open base", "close base"] * 2


async def test_a_service_that_was_opened_before_a_fork_refuses_with_advice(kmp_service):
    async with kmp_service as service:
        base = await service.get(Base)

        def child() -> None:
            for call in (service.get(Base), base.use(), service.run()):
                with pytest.raises(LifecycleError, match="after the fork"):
                    call.send(None)

        assert fork(child) == 0


async def test_nothing_set_means_project_local_and_everything_embedded(kmp_environment):
    async with Service() as service:
        context = service.context
    assert (context.project, context.service, context.environment) == ("local", "service", "dev")
    assert context.directory == kmp_environment.directory / "data" / "local"


@pytest.mark.parametrize("source", ["variable", "manifest"])
async def test_the_url_of_a_server_makes_a_missing_project_an_error(kmp_environment, source):
    if source == "variable":
        kmp_environment.set("KMP_TEST_BASE_URL", "timescale://app:hunter2@db/x")
    else:
        kmp_environment.manifest('[settings.test.base]\nurl = "timescale://app:hunter2@db/x"\n')
    with pytest.raises(ConfigurationError, match="KMP_PROJECT: must be set, since KMP_TEST_BASE_URL") as raised:
        async with Service("delays"):
            pass
    assert "hunter2" not in str(raised.value)
    kmp_environment.set("KMP_PROJECT", "acme")
    async with Service("delays") as service:
        assert service.context.project == "acme"


@pytest.mark.parametrize("embedded", [True, False])
async def test_a_provider_of_another_scheme_says_itself_whether_it_is_embedded(kmp_environment, embedded):
    plugins.register(Base, "mine", type("Mine", (Fake,), {"embedded": embedded}))
    kmp_environment.set("KMP_TEST_BASE_URL", "mine://tea:hunter2@pot")
    if embedded:
        async with Service("delays") as service:
            assert service.context.project == "local"
    else:
        with pytest.raises(ConfigurationError, match="KMP_PROJECT: must be set") as raised:
            async with Service("delays"):
                pass
        assert "hunter2" not in str(raised.value)


async def test_every_provider_of_ours_says_whether_it_is_embedded():
    from kmp_messaging import EventBus
    from kmp_storage import Bucket, Cache, GraphStore, TimeSeriesStore

    for capability_ in (EventBus, Bucket, Cache, GraphStore, TimeSeriesStore, SecretStore):
        spec = spec_of(capability_)
        for scheme in plugins.installed(spec):
            provider = plugins.find(spec, f"{scheme}:")
            if getattr(provider, "__module__", "").startswith("kmp_"):
                here = scheme in {"env", "file", "memory", "sqlite"}
                assert getattr(provider, "embedded", None) is here, (spec.name, scheme)


async def test_all_that_is_wrong_is_told_at_once(kmp_environment):
    kmp_environment.set("KMP_PROJECT", "Ächme")
    kmp_environment.set("KMP_SHUTDOWN_GRACE", "soon")
    kmp_environment.set("KMP_TEST_BASE_URL", "no-scheme hunter2")
    with pytest.raises(ConfigurationError) as raised:
        async with Service("delays"):
            pass
    named = {fault.field for fault in raised.value.faults}
    assert named >= {"KMP_PROJECT", "KMP_SHUTDOWN_GRACE", "KMP_TEST_BASE_URL"}
    assert "hunter2" not in str(raised.value)


async def test_a_missing_project_and_a_scheme_that_nothing_answers_are_told_with_the_rest(kmp_environment):
    kmp_environment.set("KMP_SHUTDOWN_GRACE", "soon")
    kmp_environment.set("KMP_TEST_BASE_URL", "oracle://tea:hunter2@pot")
    with pytest.raises(ConfigurationError) as raised:
        async with Service("delays"):
            pass
    assert {fault.field for fault in raised.value.faults} == {"KMP_SHUTDOWN_GRACE", "KMP_PROJECT", "KMP_TEST_BASE_URL"}
    with pytest.raises(ConfigurationError) as raised:
        async with Service("delays", project="acme"):
            pass
    assert {fault.field for fault in raised.value.faults} == {"KMP_SHUTDOWN_GRACE"}
    assert "hunter2" not in str(raised.value)


async def test_arguments_beat_the_environment(kmp_environment):
    kmp_environment.set("KMP_PROJECT", "acme")
    kmp_environment.set("KMP_SERVICE", "other")
    async with Service("delays", project="skyline", environment="prod") as service:
        assert (service.context.project, service.context.service) == ("skyline", "delays")
        assert service.context.environment == "prod"


async def test_an_unknown_scheme_surfaces_from_get(kmp_service, kmp_environment):
    kmp_environment.set("KMP_TEST_BASE_URL", "sqlite:nothing-answers")
    async with kmp_service as service:
        with pytest.raises(ConfigurationError, match=r"KMP_TEST_BASE_URL.*'sqlite'"):
            await service.get(Base)


async def test_run_starts_intake_is_ready_drains_and_then_closes(kmp_service):
    plugins.register(Base, "fake", Intaking)
    async with kmp_service as service:
        await service.get(Base)
        await service.get(Side)
        assert not (await service.health.readiness()).healthy
        running = asyncio.create_task(service.run())
        await until(lambda: service.health.phase == "ready")
        assert (await service.health.readiness()).status == "ok"
        assert "start base" in Fake.log
        service.stop()
        await running
        assert not (await service.health.readiness()).healthy
        assert Fake.log[-1] == "drain base"
    assert Fake.log[-2:] == ["close side", "close base"]


async def test_what_is_opened_while_running_starts_its_intake_at_once(kmp_service):
    plugins.register(Base, "fake", Intaking)
    async with kmp_service as service:
        running = asyncio.create_task(service.run())
        await until(lambda: service.health.phase == "ready")
        await service.get(Base)
        assert Fake.log[-1] == "start base"
        service.stop()
        await running
    assert Fake.log[-2:] == ["drain base", "close base"]


async def test_intake_that_was_started_is_drained_when_the_block_fails(kmp_service):
    plugins.register(Base, "fake", Intaking)
    with pytest.raises(ZeroDivisionError):
        async with kmp_service as service:
            await service.get(Base)
            running = asyncio.create_task(service.run())
            await until(lambda: service.health.phase == "ready")
            running.cancel()
            _ = 1 / 0
    assert Fake.log[-2:] == ["drain base", "close base"]


async def test_a_drain_that_does_not_end_is_given_up_and_told(kmp_environment):
    plugins.register(Base, "fake", Intaking)
    Fake.hang.add("drain base")
    with pytest.raises(DeadlineExceeded, match="drain"):
        async with Service("delays", shutdown_grace="200ms") as service:
            await service.get(Base)
            asyncio.get_running_loop().call_later(0.02, service.stop)
            await service.run()
    assert sorted(Fake.log[-2:]) == ["close base", "give up base"]


@pytest.mark.parametrize("how", ["slow", "deaf"])
async def test_a_close_that_hangs_is_given_up_and_the_others_still_close(kmp_environment, how):
    Fake.hang |= {"side", how}
    with pytest.raises(DeadlineExceeded, match=r"test\.side"):
        async with Service("delays", shutdown_grace="300ms") as service:
            await service.get(Roof)
            await service.get(Side)
    assert Fake.log[-4:] == ["close side", "close roof", "close upper", "close base"]
    Fake.hang.clear()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_an_error_of_a_close_is_raised_after_the_others_were_closed_and_masks_nothing(kmp_service):
    class Broken(Fake):
        async def _close(self) -> None:
            Fake.log.append("broken close")
            raise RuntimeError("while closing")

    plugins.register(Side, "fake", Broken)
    with pytest.raises(RuntimeError, match="while closing"):
        async with kmp_service as service:
            await service.get(Base)
            await service.get(Side)
    assert Fake.log[-2:] == ["broken close", "close base"]
    with pytest.raises(ZeroDivisionError):
        async with kmp_service as service:
            await service.get(Side)
            _ = 1 / 0


async def test_a_failed_task_stops_the_service_and_run_raises_its_error(kmp_service):
    async def work() -> None:
        raise ValueError("the task's own")

    with pytest.raises(ValueError, match="the task's own"):
        async with kmp_service as service:
            await service.get(Base)
            service.start_task(work(), name="worker")
            await service.run()
    assert Fake.log[-1] == "close base"


async def test_background_work_is_cancelled_at_the_drain_and_may_finish_what_it_does(kmp_service):
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)
            ended.set()

    async with kmp_service as service:
        service.start_task(work(), name="worker")
        asyncio.get_running_loop().call_later(0.02, service.stop)
        await service.run()
        assert ended.is_set()


async def test_a_task_for_a_service_that_is_not_open_is_refused_without_a_warning(kmp_service):
    async def work() -> None: ...

    with pytest.raises(LifecycleError):
        kmp_service.start_task(work(), name="worker")


async def test_an_optional_capability_degrades_and_comes_back_without_a_restart(kmp_service, monkeypatch):
    monkeypatch.setattr("kmp_core.service.life._OPTIONAL_PAUSE", 0.0)
    Fake.fail["side"] = Unavailable("away")
    async with kmp_service as service:
        assert await service.optional(Side) is None
        asyncio.get_running_loop().call_later(0.2, service.stop)
        running = asyncio.create_task(service.run())
        await until(lambda: service.health.phase == "ready")
        report = await service.health.readiness()
        assert (report.status, report.healthy) == ("degraded", True)
        assert report.checks["test.side"].error == "Unavailable"
        Fake.fail.clear()
        side = await service.optional(Side)
        assert side is not None
        assert (await service.health.readiness()).status == "ok"
        await running


async def test_an_optional_capability_that_is_away_is_not_tried_at_every_call(kmp_service):
    Fake.fail["side"] = Unavailable("away")
    async with kmp_service as service:
        for _ in range(5):
            assert await service.optional(Side) is None
    assert Fake.log.count("opening side") == 1


async def test_an_optional_capability_that_is_misconfigured_is_an_error(kmp_service, kmp_environment):
    kmp_environment.set("KMP_TEST_SIDE_URL", "sqlite:nothing-answers")
    async with kmp_service as service:
        with pytest.raises(ConfigurationError):
            await service.optional(Side)


async def test_the_lifespan_opens_is_ready_drains_and_closes(kmp_service):
    plugins.register(Base, "fake", Intaking)
    async with kmp_service.lifespan(object()):
        await kmp_service.get(Base)
        assert (await kmp_service.health.readiness()).healthy
    assert Fake.log == ["opening base", "open base", "start base", "drain base", "close base"]


@pytest.mark.parametrize("delay", ["100ms", "1h"])
async def test_readiness_goes_off_before_work_stops_so_that_load_balancers_notice(kmp_environment, delay):
    kmp_environment.set("KMP_SHUTDOWN_DELAY", delay)
    plugins.register(Base, "fake", Intaking)
    async with Service("delays") as service:
        base = await service.get(Base)
        running = asyncio.create_task(service.run())
        await until(lambda: service.health.phase == "ready")
        service.stop()
        await until(lambda: service.health.phase == "draining")
        for _ in range(10):  # a drain would have begun
            await asyncio.sleep(0)
        assert Fake.log[-1] == "start base"
        assert not (await service.health.readiness()).healthy
        assert await base.use()
        if delay == "1h":
            running.cancel()
        await asyncio.wait((running,))
        assert Fake.log[-1] == "drain base"
