"""What callers of a bus may pass, checked in words that name the argument and show a good one."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any

from kmp_core.errors import InvalidInput
from kmp_messaging.models import Event

__all__ = ["between", "chunks", "coroutine_function", "group_name", "topic_of", "topic_of_event"]

_CHUNK = 500
_HANDLER = "async def record(event: Departed) -> None: ..."
_GROUP = re.compile(r"[A-Za-z0-9._-]{1,100}", re.ASCII)


def group_name(name: object) -> str:
    """A group's name."""
    if not isinstance(name, str) or _GROUP.fullmatch(name) is None:
        problem = "must have 1 to 100 of A-Z, a-z, 0-9, '.', '_' and '-'"
        raise InvalidInput("group", problem, example='group="delays"')
    return name


def coroutine_function(handler: object) -> None:
    """Refuse what would do its work while it is called, and hold up every other handler of the process.

    A function, a method, a `functools.partial`, an object with such a `__call__`, and what `functools.wraps` says of a
    decorated one.
    """
    if not callable(handler):
        raise InvalidInput("handler", f"is not a function but {type(handler).__name__}", example=_HANDLER)
    function = inspect.unwrap(handler)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    if not (inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)):
        name = getattr(function, "__name__", type(function).__name__)
        raise InvalidInput("handler", f"{name} is not a coroutine function (async def)", example=_HANDLER)


def topic_of_event(event: Any) -> str:
    if not isinstance(event, Event):
        problem = f"is not an event but {type(event).__name__}"
        raise InvalidInput("events", problem, example="await bus.publish(Departed(...))")
    return topic_of(type(event))


def topic_of(event: Any) -> str:
    options = getattr(event, "__kmp_event__", None)
    if options is None:
        raise InvalidInput("event", "is not an event class", example='class Departed(Event, topic="flights.departed")')
    if options.topic is None:
        problem = "has no topic"
        raise InvalidInput(event.__name__, problem, example=f'class {event.__name__}(Event, topic="flights")')
    topic: str = options.topic
    return topic


def between(name: str, value: object, least: int, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InvalidInput(name, f"must be a whole number from {least} to {most}", example=f"{name}={least}")


async def chunks(events: Iterable[Event] | AsyncIterable[Event]) -> AsyncIterator[list[Event]]:
    chunk: list[Event] = []
    if isinstance(events, AsyncIterable):
        async for event in events:
            chunk.append(event)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    else:
        for event in events:
            chunk.append(event)
            if len(chunk) == _CHUNK:
                yield chunk
                chunk = []
    if chunk:
        yield chunk
