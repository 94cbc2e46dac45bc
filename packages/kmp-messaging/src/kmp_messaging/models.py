"""Declare what happened as a typed, immutable event; the envelope around it stays out of the way of your fields.

    class Departed(Event, topic="flights.departed", key="origin"):
        flight: str
        origin: str

Events with the same key are handled in the order in which they were published. Declarations live in dunder class
variables and the envelope (id, source, trace) in `metadata_of(event)`, so a field may be called `topic`, `key` or `id`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, ClassVar
from weakref import WeakSet

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from kmp_core.errors import InvalidInput
from kmp_core.importing import declaration

__all__ = ["Event", "EventOptions", "declared_events"]

_KEYWORDS = ("topic", "key", "type", "version")
_TOPIC = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,198}[a-z0-9])?", re.ASCII)
_TYPE = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,198}", re.ASCII)

_declared: dict[str, WeakSet[type[Event]]] = {}


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class EventOptions:
    """What an event class declares: its stream, the field that orders it, and its name and version on the wire."""

    topic: str | None = None
    key: str | None = None
    type: str = "Event"
    version: int = 1


class Event(BaseModel):
    """What happened, at `time` (now, unless you say when), with fields that pydantic validates on both sides.

    Class keywords, each inherited: `topic` names the stream (`flights.departed`); `key` names the field whose equal
    values keep their order; `type` is the name on the wire, the class's own by default; `version` is the number of
    the schema. A base without a topic is a base for others and cannot be published.

    Readers ignore fields they do not know, so a new optional field needs no new version.
    """

    # Both spellings of an aliased field are read, so that what was written under its name is understood.
    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        populate_by_name=True,
        protected_namespaces=(),
        ser_json_inf_nan="strings",
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )

    __slots__ = ("__kmp_envelope__",)  # not a field: neither compared nor copied

    __kmp_event__: ClassVar[EventOptions] = EventOptions()

    time: AwareDatetime = Field(default_factory=_now, description="When it happened, with a time zone.")

    @declaration
    def __init_subclass__(
        cls,
        *,
        topic: str | None = None,
        key: str | None = None,
        type: str | None = None,  # noqa: A002 - the word on the wire
        version: int | None = None,
        **unknown: Any,
    ) -> None:
        for keyword in unknown:
            problem = f"has no class keyword {keyword!r}{_did_you_mean(keyword, _KEYWORDS)}"
            raise InvalidInput(cls.__name__, problem, example=f'class {cls.__name__}(Event, topic="flights")')
        super().__init_subclass__()
        inherited = cls.__kmp_event__
        cls.__kmp_event__ = EventOptions(
            topic=inherited.topic if topic is None else topic,
            key=inherited.key if key is None else key,
            type=cls.__name__.partition("[")[0] if type is None else type,
            version=inherited.version if version is None else version,
        )

    @classmethod
    @declaration
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        options = cls.__kmp_event__
        _check_options(cls, options)
        if options.key is not None:
            _check_key(cls, options.key)
        if options.topic is not None:
            _declared.setdefault(options.topic, WeakSet()).add(cls)


def declared_events(topic: str) -> tuple[type[Event], ...]:
    """Every event class of this process that is published to the topic."""
    return tuple(_declared.get(topic, ()))


def _check_options(cls: type[Event], options: EventOptions) -> None:
    # Class keywords reach us unchecked.
    topic: object = options.topic
    kind: object = options.type
    version: object = options.version
    if topic is not None and not (isinstance(topic, str) and _TOPIC.fullmatch(topic)):
        problem = "must have 1 to 200 of a-z, 0-9, '.', '_' and '-', and begin and end with a letter or digit"
        raise InvalidInput(f"{cls.__name__}, topic", problem, example='topic="flights.departed"')
    if not isinstance(kind, str) or _TYPE.fullmatch(kind) is None:
        problem = "must have 1 to 199 of letters, digits, '.', '_' and '-', and begin with a letter"
        raise InvalidInput(f"{cls.__name__}, type", problem, example='type="Departed"')
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InvalidInput(f"{cls.__name__}, version", "must be a whole number from 1", example="version=2")


def _check_key(cls: type[Event], key: object) -> None:
    fields = [name for name in cls.model_fields if name != "time"]
    if isinstance(key, str) and key in fields:
        return
    # A generic base may name a field that its subclasses bring.
    if isinstance(key, str) and cls.__kmp_event__.topic is None and not fields:
        return
    known = ", ".join(fields) or "none"
    hint = _did_you_mean(key, fields) if isinstance(key, str) else ""
    problem = f"{key!r} is not a field{hint} (fields: {known})"
    raise InvalidInput(f"{cls.__name__}, key", problem, example='key="origin"')


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
