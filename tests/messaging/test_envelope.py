"""What a decoder knows already changes how fast it reads, and nothing of what it says."""

import random

import pytest

from kmp_messaging import Event
from kmp_messaging.envelope import Decoder, Encoder, trace_attribute
from kmp_messaging.errors import InvalidEvent, MalformedEvent, UndeliverableEvent, UnknownEventType

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Written(Event, topic="test.written", key="who"):
    who: str | None
    number: int = 0


def said(decoder: Decoder, content: bytes):
    try:
        event, envelope = decoder.decode(content)
    except UndeliverableEvent as error:
        return type(error), str(error)
    kept = ("id", "source", "type", "time", "dataschema", "partitionkey", "traceparent")
    return event, {name: envelope[name] for name in kept if envelope.get(name) is not None}


def cold() -> Decoder:
    decoder = Decoder("test.written")
    decoder.add(Written)
    return decoder


def contents() -> list[bytes]:
    encoder = Encoder("/ns/acme/sa/delays", largest=10_000)
    keys = ["ann", "Zoë", 'with "quotes"', "back\\slash", "line\nbreak", "\u2028", ',"data":{}', None]
    made = []
    for trace in (b"", trace_attribute(TRACE)):
        made += [encoder.encode(Written(who=key, number=n), trace)[1] for n, key in enumerate(keys)]
    return made


@pytest.fixture
def warm() -> Decoder:
    decoder = cold()
    for content in contents():
        decoder.decode(content)
    assert any(decoder._heads.values()), "the decoder has learnt nothing, so this file would show nothing"
    return decoder


def test_a_warm_decoder_reads_what_was_written(warm):
    for content in contents():
        assert said(warm, content) == said(cold(), content)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"number":0', b'"number":"x"'),
        (b'"number":0}}', b'"number":0}} '),
        (b'"number":0}}', b'"number":0}}}'),
        (b'"number":0}}', b'"number":0}'),
        (b'"number":0}}', b'"number":0},"data":{"who":"eve","number":9}}'),
        (b'"number":0}}', b'"number":0},"id":"another"}'),
        (b'"number":0}}', b'"number":0},"later":[1]}'),
        (b',"data":', b',"data":{"who":"eve"},"data":'),
        (b',"data":', b',"fresh":{"data":1},"data":'),
        (b',"partitionkey":"ann"', b',"partitionkey":7'),
        (b',"partitionkey":"ann"', b',"partitionkey":"\xff"'),
        (b',"partitionkey":"ann"', b',"partitionkey":"a\x01b"'),
        (b',"partitionkey":"ann"', b',"partitionkey":"\\u0061"'),
        (b',"partitionkey":"ann"', b""),
        (b',"id":"', b',"id":""'),
        (b',"id":"', b',"id":7,"id":"'),
        (b'{"specversion"', b' {"specversion"'),
        (b'"1.0"', b'"2.0"'),
        (b'"type":"Written"', b'"type":"Stranger"'),
        (b"/ns/acme/", b"/ns/harbour/"),
        (b'"data":{"time":', b'"data":{"tide":'),
    ],
)
def test_a_warm_decoder_says_of_anything_else_what_a_cold_one_says(warm, old, new):
    content = contents()[0].replace(old, new)
    assert content != contents()[0]
    assert said(warm, content) == said(cold(), content)


def test_random_damage_is_judged_alike(warm):
    dice = random.Random(5)
    for content in contents() * 40:
        damaged = bytearray(content)
        for _ in range(dice.randint(1, 3)):
            damaged[dice.randrange(len(damaged))] = dice.choice(b'"\\{},:x0\x00\xff')
        assert said(warm, bytes(damaged)) == said(cold(), bytes(damaged))


def test_what_is_remembered_of_strangers_is_bounded(warm):
    for number in range(3000):
        content = contents()[0].replace(b"/ns/acme/sa/delays", b"/ns/acme/sa/d%d" % number)
        warm.decode(content)
    assert len(warm._heads) <= 1000


BEFORE = b'{"specversion":"1.0","id":"1","source":"/x","type":"Written"'
HOSTILE = {
    "nothing": (b"", MalformedEvent),
    "NUL": (b"\0", MalformedEvent),
    "null": (b"null", MalformedEvent),
    "list": (b"[]", MalformedEvent),
    "UTF-16": ((BEFORE + b',"data":{"who":"ann"}}').decode().encode("utf-16"), MalformedEvent),
    "byte order mark": (b"\xef\xbb\xbf" + BEFORE + b',"data":{"who":"ann"}}', MalformedEvent),
    "two": ((BEFORE + b',"data":{"who":"ann"}}') * 2, MalformedEvent),
    "deep": (BEFORE + b',"data":{"who":"ann","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", MalformedEvent),
    "deep and open": (BEFORE + b',"data":' + b'{"a":' * 200_000, MalformedEvent),
    "lone surrogate": (BEFORE + b',"data":{"who":"\\ud800"}}', MalformedEvent),
    "Latin-1": (BEFORE + b',"data":{"who":"\xe9"}}', MalformedEvent),
    "raw control character": (BEFORE + b',"data":{"who":"a\x00b"}}', MalformedEvent),
    "many digits": (BEFORE + b',"data":{"who":"ann","number":' + b"9" * 5000 + b"}}", MalformedEvent),
    "1e400": (BEFORE + b',"data":{"who":"ann","number":1e400}}', InvalidEvent),
    "NaN": (BEFORE + b',"data":{"who":"ann","number":NaN}}', InvalidEvent),
    "half": (BEFORE + b',"data":{"who":"ann","number":0.5}}', InvalidEvent),
    "naive time": (BEFORE + b',"data":{"who":"ann","time":"2013-01-01T00:00:00"}}', InvalidEvent),
    "time beyond": (BEFORE + b',"data":{"who":"ann","time":1e400}}', InvalidEvent),
    "time that is none": (BEFORE + b',"time":"never","data":{"who":"ann"}}', InvalidEvent),
    "key that is a number": (BEFORE + b',"partitionkey":7,"data":{"who":"ann"}}', MalformedEvent),
    "id that is an object": (BEFORE.replace(b'"1",', b"{},") + b',"data":{"who":"ann"}}', MalformedEvent),
    "stranger": (BEFORE.replace(b"Written", b"Wri\\u0000ted") + b',"data":{"who":"ann"}}', UnknownEventType),
}


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize(("content", "error"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_a_typed_error_and_nothing_else(content, error, warm):
    decoder = Decoder("test.written")
    decoder.add(Written)
    good = BEFORE + b',"data":{"who":"ann"}}'
    if warm:
        decoder.decode(good)
    with pytest.raises(error) as refused:
        decoder.decode(content)
    assert len(str(refused.value)) < 500
    assert decoder.decode(good)[0].who == "ann"
