"""What happens when a handler fails: count durably, try again later, and in the end store a dead letter.

Nothing is given up because the store fails: then the event waits where it is, and so does its position.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

from kmp_core.errors import KmpError, LifecycleError
from kmp_messaging.embedded.items import Item, Raw
from kmp_messaging.embedded.letters import Attempt, Burial, bury, count_attempts, forget_death, note_death
from kmp_messaging.embedded.partition import Partition
from kmp_messaging.embedded.store import Store
from kmp_messaging.redaction import cause_of, detail_of
from kmp_messaging.settings import BusSettings

__all__ = ["Failures", "jitter"]

_LOGGER = logging.getLogger(__name__)
_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 2.0


def jitter(failures: int, first: float, limit: float) -> float:
    """Seconds until the next try: anything up to a bound that doubles each time ("full jitter")."""
    return random.uniform(0, min(limit, first * 2 ** min(failures - 1, 30)))  # noqa: S311 - spreads load, no secret


class Failures:
    """The failures of one group in one topic."""

    def __init__(
        self,
        store: Store,
        settings: BusSettings,
        *,
        group: int,
        names: tuple[str, str],
        report: Callable[[KmpError], None],
    ) -> None:
        self._store = store
        self._group = group
        self._topic, self._name = names
        self._report = report
        self._first = settings.retry_delay.total_seconds()
        self._limit = settings.retry_delay_limit.total_seconds()

    def delay(self, failures: int) -> float:
        """Seconds until the next try."""
        return jitter(failures, self._first, self._limit)

    async def count(self, items: list[Item]) -> bool:
        """One more attempt for each, remembered beyond the end of the process; False where a slot is lost."""
        attempts = []
        for item in items:
            partition = item.partition
            number = partition.attempts[item.position] = item.attempts + 1
            attempts.append(Attempt(partition.slot, partition.generation, item.position, number))
        try:
            owned = await self._store.write(lambda c: count_attempts(c, self._group, attempts))
        except LifecycleError:
            raise
        except KmpError as error:
            self._report(error)  # the count lives on in memory; the event is not given up for it
            return True
        if not owned:
            for item in items:
                item.partition.active = False
        return owned

    async def note_death(self, item: Item) -> bool:
        """Count the death that the handler may bring, before it begins; False where the slot is lost."""
        partition = item.partition
        number = partition.deaths[item.position] = item.deaths + 1
        attempt = Attempt(partition.slot, partition.generation, item.position, number)
        return await self._insist(partition, lambda c: note_death(c, self._group, attempt))

    async def forget_death(self, item: Item) -> None:
        """The process has survived the handler."""
        partition = item.partition
        partition.deaths.pop(item.position, None)
        await self._insist(partition, lambda c: forget_death(c, self._group, partition.slot, item.position))

    async def _insist(self, partition: Partition, work: Callable[[sqlite3.Connection], bool]) -> bool:
        """Write it, however long that takes; False where the slot is lost, which `work` tells."""
        pause = _FIRST_PAUSE
        while partition.active:
            try:
                partition.active = await self._store.write(work)
            except LifecycleError:
                raise
            except KmpError as error:
                self._report(error)
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311 - spreads load, no secret
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                return partition.active
        return False

    async def bury(self, raw: Raw, error: BaseException, envelope: Mapping[str, Any], attempts: int) -> bool:
        """Store the dead letter of an event, however long that takes, and say so; False where the slot is lost."""
        partition, position, content = raw
        letter = Burial(
            slot=partition.slot,
            generation=partition.generation,
            position=position,
            event=envelope.get("id", ""),
            topic=self._topic,
            group=self._name,
            type=envelope.get("type", "")[:200],
            key=envelope.get("partitionkey"),
            content=content,
            cause=cause_of(error),
            detail=detail_of(error),
            attempts=attempts,
            source=envelope.get("source"),
            traceparent=envelope.get("traceparent"),
        )
        buried = await self._insist(partition, lambda c: bury(c, self._group, letter))
        if buried:
            _LOGGER.warning(
                "bus: group %s of topic %s gave up event %r of type %r at attempt %d: %s: %s%s",
                *(self._name, self._topic, letter.event, letter.type, attempts, letter.cause, letter.detail),
                _place(error),
            )
        return buried


def _place(error: BaseException) -> str:
    """Where in the handler: a traceback would hold what redaction has taken out."""
    step = error.__traceback__
    while step is not None and step.tb_frame.f_globals.get("__name__", "").startswith("kmp_messaging."):
        step = step.tb_next
    return "" if step is None else f" ({step.tb_frame.f_code.co_filename}, line {step.tb_lineno})"
