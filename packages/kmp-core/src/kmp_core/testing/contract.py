"""What every provider promises, as tests that a provider of your own inherits through its capability's suite."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable
from typing import Any, Protocol, cast

import pytest

from kmp_core.deadlines import deadline
from kmp_core.errors import DeadlineExceeded, KmpError, LifecycleError
from kmp_core.testing.telemetry import Recorder

__all__ = ["Make", "ProviderContract", "fork"]


class Make(Protocol):
    """What the fixture `make` returns: a provider, not open. Within one test, the same project finds the same data."""

    def __call__(self, project: str = "acme") -> Any: ...


def fork(work: Callable[[], None]) -> int:
    """Run `work` in a forked child and return the child's exit code: 0 where it returned, 1 where it raised."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forking beside threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.asyncio
class ProviderContract:
    """What every provider promises, whatever its capability. A capability's suite fills in `write` and `wrote`.

    Tests are coroutines and carry their own mark, so they run in pytest-asyncio's strict mode too.
    """

    @pytest.fixture
    def make(self) -> Make:
        """The provider under test; override this fixture."""
        raise NotImplementedError("define a fixture `make` that returns a factory of your provider")

    async def write(self, provider: Any) -> None:
        """One ordinary call that stores something small, always the same."""
        raise NotImplementedError

    async def wrote(self, provider: Any) -> bool:
        """Whether this provider sees what `write` stored."""
        raise NotImplementedError

    async def test_opens_answers_and_closes(self, make: Make) -> None:
        async with make() as provider:
            await provider.check()
            await self.write(provider)
            assert await self.wrote(provider)

    async def test_what_a_durable_provider_wrote_is_found_by_the_next(self, make: Make) -> None:
        async with make() as provider:
            await self.write(provider)
        if "durable" not in provider.abilities:
            pytest.skip("durable is not declared")
        async with make() as provider:
            assert await self.wrote(provider)

    async def test_what_a_provider_that_is_shared_wrote_is_seen_by_others(self, make: Make) -> None:
        async with make() as provider, make() as other:
            await self.write(provider)
            if "shared" not in provider.abilities:
                pytest.skip("shared is not declared")
            assert await self.wrote(other)

    async def test_refuses_use_before_open(self, make: Make) -> None:
        provider = make()
        with pytest.raises(LifecycleError):
            await self.write(provider)
        with pytest.raises(LifecycleError):
            await provider.check()
        await provider.close()

    async def test_refuses_use_after_close(self, make: Make) -> None:
        provider = make()
        await provider.open()
        await provider.close()
        with pytest.raises(LifecycleError):
            await self.write(provider)
        with pytest.raises(LifecycleError):
            await provider.check()

    async def test_refuses_to_open_twice(self, make: Make) -> None:
        async with make() as provider:
            with pytest.raises(LifecycleError):
                await provider.open()
            await self.write(provider)

    async def test_refuses_to_reopen(self, make: Make) -> None:
        provider = make()
        await provider.open()
        await provider.close()
        with pytest.raises(LifecycleError):
            await provider.open()

    async def test_closes_as_often_as_asked(self, make: Make) -> None:
        provider = make()
        await provider.open()
        await asyncio.gather(provider.close(), provider.close())
        await provider.close()

    async def test_warns_when_close_was_forgotten(self, make: Make) -> None:
        provider = make()
        kind = cast(Any, type(provider))
        await provider.open()
        # The finalizer is called by hand: a real leak would disturb whatever test runs next.
        with pytest.warns(ResourceWarning):
            kind.__del__(provider)
        await provider.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kind.__del__(provider)

    async def test_refuses_use_in_a_forked_child(self, make: Make) -> None:
        async with make() as provider:

            def child() -> None:
                call = self.write(provider)
                with pytest.raises(LifecycleError):
                    call.send(None)
                call.close()

            assert fork(child) == 0, "the child did not get a LifecycleError"
            await self.write(provider)

    async def test_refuses_use_in_another_event_loop(self, make: Make) -> None:
        async with make() as provider:
            with pytest.raises(LifecycleError, match="event loop"):
                await asyncio.to_thread(asyncio.run, self.write(provider))
            await self.write(provider)

    async def test_ends_when_the_time_is_over_and_works_again(self, make: Make) -> None:
        async with make() as provider:
            with pytest.raises(DeadlineExceeded):
                async with deadline(0):
                    await self.write(provider)
            await self.write(provider)
            assert await self.wrote(provider)

    async def test_works_after_a_cancellation_at_any_point(self, make: Make) -> None:
        async with make() as provider:
            for turns in range(12):
                call = asyncio.ensure_future(self.write(provider))
                for _ in range(turns):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
            await self.write(provider)
            assert await self.wrote(provider)

    async def test_closes_beside_a_running_call(self, make: Make) -> None:
        provider = make()
        await provider.open()
        call = asyncio.ensure_future(self.write(provider))
        await asyncio.sleep(0)
        await provider.close()
        (outcome,) = await asyncio.gather(call, return_exceptions=True)
        assert outcome is None or isinstance(outcome, KmpError), f"a call beside close ended with {outcome!r}"

    async def test_projects_do_not_see_each_other(self, make: Make) -> None:
        async with make("acme") as ours, make("acme2") as theirs:
            await self.write(ours)
            assert await self.wrote(ours)
            assert not await self.wrote(theirs)

    async def test_a_call_is_one_span_and_one_point(self, make: Make) -> None:
        with Recorder() as recorder:
            async with make() as provider:
                recorder.clear()
                await self.write(provider)
        assert [(span.ended, span.failed) for span in recorder.spans] == [(True, False)]
        assert len(recorder.points) == 1
        for attributes in (recorder.spans[0].attributes, recorder.points[0].attributes):
            assert attributes["kmp.project"] == "acme"
        assert recorder.points[0].name.endswith(".client.operation.duration")

    async def test_a_failed_call_tells_its_error_type(self, make: Make) -> None:
        with Recorder() as recorder:
            async with make() as provider:
                recorder.clear()
                with pytest.raises(DeadlineExceeded):
                    async with deadline(0):
                        await self.write(provider)
        assert all(span.ended and span.failed for span in recorder.spans)
        assert all("error.type" in point.attributes for point in recorder.points)
