"""Events on the wire: CloudEvents 1.0 in JSON ("structured mode"), so that other languages read them too.

The attributes are `id`, `source`, `type`, `time`, `datacontenttype` and `dataschema`, and of the documented extensions
`partitionkey` and `traceparent`. Readers ignore attributes they do not know, so a later version may add some.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Annotated, Any, Generic, NotRequired, TypeVar

from pydantic import AwareDatetime, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict

from kmp_core.errors import InvalidInput
from kmp_messaging.errors import InvalidEvent, MalformedEvent, UnknownEventType
from kmp_messaging.identifiers import new_id
from kmp_messaging.models import Event, declared_events

__all__ = ["Decoder", "Encoder", "Envelope", "Metadata", "metadata_of", "trace_attribute"]

D = TypeVar("D")

_CACHED_KEYS = 10_000
_CACHED_HEADS = 1_000
_BRACE = ord("}")
# The slot itself: an event is frozen, its envelope is none of its fields, and pydantic's own look-up is slow.
_slot: Any = Event.__dict__["__kmp_envelope__"]
_get_envelope: Callable[[Event], dict[str, Any] | str] = _slot.__get__
_set_envelope: Callable[[Event, dict[str, Any] | str], None] = _slot.__set__


class Envelope(TypedDict, Generic[D]):
    """What a reader takes from the wire."""

    specversion: Annotated[str, Field(pattern=r"^1\.")]
    id: Annotated[str, Field(min_length=1)]
    source: str
    type: str
    time: NotRequired[str | None]
    dataschema: NotRequired[str | None]
    partitionkey: NotRequired[str | None]
    traceparent: NotRequired[str | None]
    data: D


@dataclass(frozen=True, slots=True)
class Metadata:
    """An event's envelope: `id` is the same at every delivery, and so can be the key of an effect done once.

    `source` is what the publisher says of itself; it proves nothing. `attempt` counts from 1.
    """

    id: str
    source: str | None
    type: str
    version: int
    key: str | None
    traceparent: str | None
    attempt: int


def metadata_of(event: Event) -> Metadata:
    """The envelope of an event: as it was received, or as it will be published."""
    envelope = _envelope(event)
    _, _, version = (envelope.get("dataschema") or "").rpartition("/")
    options = type(event).__kmp_event__
    return Metadata(
        id=envelope["id"],
        source=envelope.get("source"),
        type=options.type,
        version=int(version) if version.isascii() and version.isdigit() else options.version,
        key=envelope.get("partitionkey") or _key(event),
        traceparent=envelope.get("traceparent"),
        attempt=envelope.get("attempt", 1),
    )


def _envelope(event: Event) -> dict[str, Any]:
    """What was received; of an event that is only published, the identifier is all there is."""
    known = _identifier(event)
    return known if isinstance(known, dict) else {"id": known}


def _identifier(event: Event) -> dict[str, Any] | str:
    try:
        return _get_envelope(event)
    except AttributeError:
        identifier = new_id()
        _set_envelope(event, identifier)
        return identifier


def _key(event: Event) -> str | None:
    field = type(event).__kmp_event__.key
    value = None if field is None else getattr(event, field)
    if value is None:
        return None
    text = str(value.value if isinstance(value, Enum) else value)
    if not text:
        raise InvalidInput(str(field), "is empty, and it orders the events", example='"JFK", or None for no order')
    return text


class Encoder:
    """Turns events into bytes for one publisher; `source` is its name, a URI reference (CloudEvents 1.0)."""

    def __init__(self, source: str, *, largest: int) -> None:
        self._source = source
        self._largest = largest
        self._heads: dict[type[Event], tuple[bytes, str | None, Callable[[Event], bytes]]] = {}
        self._keys: dict[str, bytes] = {}

    def encode(self, event: Event, tail: bytes) -> tuple[str | None, bytes]:
        """The event's key and its bytes; `tail` is what `trace_attribute` gave, once for a batch."""
        cls = type(event)
        head, field, to_json = self._heads.get(cls) or self._head(cls)
        try:
            data = to_json(event)
            value = None if field is None else getattr(event, field)
            key = value if value.__class__ is str and value else _key(event)
            attribute = b"" if key is None else self._keys.get(key) or self._key(key)
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            raise InvalidInput(cls.__name__, "cannot be written as JSON", example="fields of plain values") from error
        # `time` is the first field of every event, so its text need not be made twice.
        end = data.find(b'"', 9)
        stamp = data[9:end] if data.startswith(b'{"time":"') else event.time.isoformat().encode()
        known = _identifier(event)
        identifier = known if isinstance(known, str) else known["id"]
        content = b'%b,"id":"%b","time":"%b"%b%b,"data":%b}' % (head, identifier.encode(), stamp, attribute, tail, data)
        if len(content) > self._largest:
            problem = f"has {len(content)} bytes as an event, and {self._largest} are allowed"
            raise InvalidInput(cls.__name__, problem, example="the key of an object in a bucket, not the object")
        return key, content

    def _head(self, cls: type[Event]) -> tuple[bytes, str | None, Callable[[Event], bytes]]:
        options = cls.__kmp_event__
        head = _head_of(_attributes(options.type, self._source, f"kmp:{options.type}/{options.version}"))
        found = self._heads[cls] = (head, options.key, cls.__pydantic_serializer__.to_json)
        return found

    def _key(self, key: str) -> bytes:
        if len(self._keys) >= _CACHED_KEYS:
            self._keys.clear()
        # Escaped to ASCII; a lone surrogate cannot be written, and must not pass as an escape.
        key.encode()
        attribute = self._keys[key] = b',"partitionkey":' + json.dumps(key).encode()
        return attribute


def trace_attribute(traceparent: str | None) -> bytes:
    """The part of an envelope that all events of one batch share."""
    return b"" if traceparent is None else b',"traceparent":"' + traceparent.encode() + b'"'


_ANY = TypeAdapter[Envelope[Any]](Envelope[Any]).validator


# What our own encoder writes behind the head. Text with an escape in it is left to the parser of JSON.
_OURS = re.compile(
    rb',"id":"([^"\\\x00-\x1f]+)","time":"([^"\\\x00-\x1f]*)"'
    rb'(?:,"partitionkey":"([^"\\\x00-\x1f]+)")?(?:,"traceparent":"([^"\\\x00-\x1f]*)")?,"data":'
)


def _head_of(attributes: Mapping[str, Any]) -> bytes:
    """How an envelope of ours begins: what all events of a class from one publisher share."""
    return json.dumps(attributes, separators=(",", ":")).removesuffix("}").encode()


def _attributes(kind: str, source: str, schema: str | None) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "type": kind,
        "source": source,
        "datacontenttype": "application/json",
        "dataschema": schema,
    }


class Decoder:
    """Turns bytes of one topic into events of the classes that somebody handles.

    An envelope whose beginning was validated before, byte for byte, is taken apart instead of being parsed again; its
    content is validated every time.
    """

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._heads: dict[bytes, tuple[Callable[[bytes], Event], dict[str, Any]] | None] = {}
        self._validators: dict[str, Any] = {}
        self._type = ""
        self._validate: Callable[[bytes], dict[str, Any]] = _ANY.validate_json

    def add(self, cls: type[Event]) -> None:
        """Give out events of the class as its objects."""
        self._heads.clear()
        validator = TypeAdapter[Any](Envelope[cls]).validator  # type: ignore[valid-type]
        self._type = cls.__kmp_event__.type
        self._validate = self._validators[self._type] = validator.validate_json

    def decode(self, content: bytes) -> tuple[Event | None, dict[str, Any]]:
        """The event and its envelope; no event where the type is known and nobody handles it here.

        Raises `UndeliverableEvent`, in words that quote no value.
        """
        end = content.find(b',"id":"')
        known = self._heads.get(content[:end])
        if known is not None:
            found = _OURS.match(content, end)
            if found is not None and content[-1] == _BRACE:
                try:
                    event = known[0](content[found.end() : -1])
                    envelope = _envelope_of(found, known[1])
                except (ValidationError, UnicodeDecodeError):
                    pass  # to be told in full
                else:
                    if "time" not in event.__pydantic_fields_set__:
                        _take_time(event, envelope)
                    _set_envelope(event, envelope)
                    return event, envelope
        return self._decode_fully(content)

    def _decode_fully(self, content: bytes) -> tuple[Event | None, dict[str, Any]]:
        try:
            envelope = self._validate(content)
        except ValidationError:
            return self._decode_slowly(content)
        if envelope["type"] != self._type:
            return self._decode_slowly(content)
        event = envelope.pop("data")
        if "time" not in event.__pydantic_fields_set__:
            _take_time(event, envelope)
        _set_envelope(event, envelope)
        self._learn(content, event, envelope)
        return event, envelope

    def _learn(self, content: bytes, event: Event, envelope: dict[str, Any]) -> None:
        """Remember the beginning, and whether it is just what our encoder writes for these attributes."""
        attributes = _attributes(envelope["type"], envelope["source"], envelope.get("dataschema"))
        head = content[: content.find(b',"id":"')]
        if len(self._heads) >= _CACHED_HEADS:
            self._heads.clear()
        ours = head == _head_of(attributes)
        self._heads[head] = (type(event).__pydantic_validator__.validate_json, attributes) if ours else None

    def _decode_slowly(self, content: bytes) -> tuple[Event | None, dict[str, Any]]:
        try:
            envelope: dict[str, Any] = _ANY.validate_json(content)
        except ValidationError as error:
            raise MalformedEvent(f"The bytes are no CloudEvent: {_faults(error)}") from None
        kind = envelope["type"]
        validate = self._validators.get(kind)
        if validate is None:
            known = sorted(cls.__kmp_event__.type for cls in declared_events(self._topic))
            if kind in known:
                return None, envelope
            message = f"No class of this process has the type {kind[:200]!r} (known: {', '.join(known)})"
            raise UnknownEventType(message, attributes=envelope)
        try:
            envelope = validate(content)
        except ValidationError as error:
            raise InvalidEvent(f"The content does not fit {kind}: {_faults(error)}", attributes=envelope) from None
        self._type, self._validate = kind, validate  # the next is likely to be of the same type
        event = envelope.pop("data")
        _take_time(event, envelope)
        _set_envelope(event, envelope)
        return event, envelope


def _envelope_of(found: re.Match[bytes], attributes: dict[str, Any]) -> dict[str, Any]:
    identifier, time, key, traceparent = found.groups()
    envelope = {**attributes, "id": identifier.decode(), "time": time.decode()}
    if key is not None:
        envelope["partitionkey"] = key.decode()
    if traceparent is not None:
        envelope["traceparent"] = traceparent.decode()
    return envelope


_TIME = TypeAdapter[datetime](AwareDatetime)


def _take_time(event: Event, envelope: dict[str, Any]) -> None:
    """Another producer's event may have its time in the envelope alone."""
    stamp = envelope.get("time")
    if stamp is None or "time" in event.__pydantic_fields_set__:
        return
    try:
        vars(event)["time"] = _TIME.validate_python(stamp)
    except ValidationError as error:
        raise InvalidEvent(f"The attribute 'time' is wrong: {_faults(error)}", attributes=envelope) from None


def _faults(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'event'}: {fault['msg']}" for fault in found[:5])
