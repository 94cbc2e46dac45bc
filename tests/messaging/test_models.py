"""Declaring events: keywords that are checked, fields that may have any name, envelopes that stay aside."""

import json
import pickle
from datetime import UTC, datetime
from enum import Enum
from typing import Generic, TypeVar

import pytest
from pydantic import Field, ValidationError

from kmp_core.errors import InvalidInput
from kmp_messaging import Event, InvalidEvent, MalformedEvent, UnknownEventType, metadata_of
from kmp_messaging.envelope import Decoder, Encoder
from kmp_messaging.identifiers import new_id

T = TypeVar("T")


class Departed(Event, topic="test.departed", key="origin"):
    flight: str
    origin: str | None
    delay_minutes: float | None = None


def encode(event: Event, source: str = "/ns/acme/sa/desk") -> bytes:
    return Encoder(source, largest=1 << 20).encode(event, b"")[1]


def decoder(cls: type[Event]) -> Decoder:
    made = Decoder(cls.__kmp_event__.topic or "")
    made.add(cls)
    return made


def test_time_is_now_and_aware_unless_said_otherwise():
    assert Departed(flight="1", origin="JFK").time.tzinfo is not None
    when = datetime(2013, 1, 1, 5, 15, tzinfo=UTC)
    assert Departed(time=when, flight="1", origin="JFK").time == when
    with pytest.raises(ValidationError, match="timezone"):
        Departed(time=datetime(2013, 1, 1), flight="1", origin="JFK")  # noqa: DTZ001 - the fault under test


def test_an_event_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Departed(flight="1", origin="JFK").flight = "2"  # type: ignore[misc]


def test_a_misspelt_keyword_is_refused_with_the_right_one():
    with pytest.raises(InvalidInput, match="did you mean 'topic'"):
        type("Wrong", (Event,), {}, tpoic="x")


def test_a_key_that_is_no_field_is_refused_with_the_nearest():
    with pytest.raises(InvalidInput, match="did you mean 'origin'"):

        class Wrong(Event, topic="x", key="orign"):
            origin: str


@pytest.mark.parametrize(
    "keywords",
    [{"topic": "Upper"}, {"topic": ""}, {"topic": "a/b"}, {"topic": "x", "version": 0}, {"topic": "x", "type": "1"}],
)
def test_wrong_values_of_keywords_are_refused(keywords):
    with pytest.raises(InvalidInput, match="for example"):
        type("Wrong", (Event,), {}, **keywords)


def test_options_are_inherited_and_optional_on_generic_bases():
    class Changed(Event, Generic[T], key="name"):
        value: T
        name: str

    class Price(Changed[float], topic="test.prices", version=3):
        pass

    class Rate(Price):
        pass

    assert Changed.__kmp_event__.topic is None
    assert (Price.__kmp_event__.topic, Price.__kmp_event__.key, Price.__kmp_event__.version) == (
        "test.prices",
        "name",
        3,
    )
    assert (Rate.__kmp_event__.topic, Rate.__kmp_event__.type) == ("test.prices", "Rate")


def test_fields_may_have_the_names_of_the_envelope():
    class Named(Event, topic="test.named", key="id"):
        id: str
        topic: str
        key: int
        source: str
        type: str
        metadata: str
        model_year: int

    event = Named(id="i", topic="t", key=1, source="s", type="y", metadata="m", model_year=2013)
    found, _ = decoder(Named).decode(encode(event))
    assert found == event
    assert metadata_of(event).type == "Named"
    assert metadata_of(event).key == "i"


def test_the_envelope_is_neither_compared_nor_copied():
    event = Departed(flight="1", origin="JFK")
    number = metadata_of(event).id
    assert metadata_of(event).id == number
    copy = event.model_copy()
    assert copy == event
    assert metadata_of(copy).id != number
    assert pickle.loads(pickle.dumps(event)) == event


def test_values_that_json_does_not_have_survive():
    class Odd(Event, topic="test.odd"):
        number: float
        raw: bytes
        wire: str = Field(alias="from")

    event = Odd(number=float("inf"), raw=b"\x00\xff", wire="x")
    found, _ = decoder(Odd).decode(encode(event))
    assert found == event


def test_the_wire_is_a_cloudevent():
    event = Departed(time=datetime(2013, 1, 1, 5, 15, tzinfo=UTC), flight="UA1545", origin='a "b"\n')
    content = Encoder("/ns/acme/sa/desk", largest=1 << 20).encode(event, b',"traceparent":"t"')[1]
    assert b"\n" not in content
    found = json.loads(content)
    assert found == {
        "specversion": "1.0",
        "id": metadata_of(event).id,
        "source": "/ns/acme/sa/desk",
        "type": "Departed",
        "time": "2013-01-01T05:15:00Z",
        "datacontenttype": "application/json",
        "dataschema": "kmp:Departed/1",
        "partitionkey": 'a "b"\n',
        "traceparent": "t",
        "data": {"time": "2013-01-01T05:15:00Z", "flight": "UA1545", "origin": 'a "b"\n', "delay_minutes": None},
    }


def test_what_cannot_be_written_is_refused_before_anything_is():
    with pytest.raises(InvalidInput):
        encode(Departed(flight="\ud800", origin="JFK"))
    with pytest.raises(InvalidInput):
        encode(Departed(flight="1", origin="\ud800"))
    with pytest.raises(InvalidInput, match="empty"):
        encode(Departed(flight="1", origin=""))
    with pytest.raises(InvalidInput, match="bytes"):
        Encoder("/x", largest=256).encode(Departed(flight="x" * 300, origin="JFK"), b"")


def test_keys_of_every_kind_have_one_spelling():
    class Colour(Enum):
        RED = "red"

    class Painted(Event, topic="test.painted", key="colour"):
        colour: Colour | int | None

    encoder = Encoder("/x", largest=1 << 20)
    assert encoder.encode(Painted(colour=Colour.RED), b"")[0] == "red"
    assert encoder.encode(Painted(colour=7), b"")[0] == "7"
    assert encoder.encode(Painted(colour=None), b"")[0] is None


def test_one_topic_may_carry_several_types():
    class Flight(Event, topic="test.flights"):
        flight: str

    class Landed(Flight):
        runway: int

    class Boarded(Flight):
        gate: str

    reader = decoder(Landed)
    landed = Landed(flight="1", runway=4)
    assert reader.decode(encode(landed))[0] == landed
    # Known and not asked for: no event, and no fault. Its content would fit, and its type decides.
    assert reader.decode(encode(Boarded(flight="1", gate="A")))[0] is None
    with pytest.raises(UnknownEventType, match="Boarded"):
        reader.decode(encode(Boarded(flight="1", gate="A")).replace(b'"Boarded"', b'"Stranger"'))


def test_faults_of_the_wire_quote_no_value():
    reader = decoder(Departed)
    content = encode(Departed(flight="1", origin="JFK"))
    for bad, error in [
        (b"", MalformedEvent),
        (b"[" * 100_000, MalformedEvent),
        (content[:-1], MalformedEvent),
        (content.replace(b'"1.0"', b'"2.0"'), MalformedEvent),
        (content.replace(b'"flight":"1"', b'"flight":{"secret":"hunter2"}'), InvalidEvent),
    ]:
        with pytest.raises(error) as caught:
            reader.decode(bad)
        assert "hunter2" not in str(caught.value)


def test_identifiers_are_uuids_of_version_7_that_sort_by_time():
    made = [new_id() for _ in range(50_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(number[14] == "7" and number[19] in "89ab" for number in made)
