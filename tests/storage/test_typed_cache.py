"""How a model is kept: as JSON or MessagePack, and never with a secret, of which only the mask would come back."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, RootModel, Secret, SecretBytes, SecretStr
from typing_extensions import TypedDict

from kmp_core.errors import InvalidInput, MissingExtra
from kmp_storage.cache.codecs import Codec
from kmp_storage.embedded.cache import SqliteCache


class Plain(BaseModel):
    password: SecretStr


class Optional(BaseModel):
    token: SecretBytes | None = None


class Nested(BaseModel):
    name: str
    accounts: dict[str, list[Plain]]


class Later(BaseModel):
    below: Below | None = None


class Below(BaseModel):
    pin: Secret[int]
    again: Later | None = None


@dataclass
class Login:
    password: SecretStr


class Pair(NamedTuple):
    user: str
    password: SecretStr


class Form(TypedDict):
    password: SecretStr


class Others(BaseModel):
    login: Login


class Pairs(BaseModel):
    pairs: tuple[Pair, ...]


class Forms(BaseModel):
    form: Form


class Airport(BaseModel):
    code: str
    near: list[Airport] = []


@pytest.mark.parametrize(
    ("model", "field"),
    [
        (Plain, "Plain.password"),
        (Optional, "Optional.token"),
        (Nested, "Nested.accounts.password"),
        (Later, "Later.below.pin"),
        (Others, "Others.login.password"),
        (Pairs, "Pairs.pairs.password"),
        (Forms, "Forms.form.password"),
        (RootModel[list[SecretStr]], r"RootModel.*\.root"),
    ],
)
async def test_a_model_with_a_secret_is_refused_by_the_name_of_its_field(model: Any, field: str) -> None:
    async with SqliteCache("memory:") as cache:
        with pytest.raises(InvalidInput, match=rf"^model: holds the secret {field}, of which .*; for example"):
            cache.of(model)


async def test_a_model_that_holds_its_own_kind_is_kept() -> None:
    async with SqliteCache("memory:") as cache:
        airports = cache.of(Airport)
        await airports.set("JFK", Airport(code="JFK", near=[Airport(code="LGA")]))
        assert await airports.get("JFK") == Airport(code="JFK", near=[Airport(code="LGA")])


# JSON and MessagePack


class Flight(BaseModel):
    """As strict as a model can be: a time must be a time, not its text."""

    model_config = ConfigDict(strict=True)

    number: str = Field(alias="flight number")
    departure: datetime
    duration: timedelta
    fare: Decimal
    booking: UUID
    seats: set[int]
    luggage: dict[int, float]
    remark: bytes | None = None


FLIGHT = Flight(
    **{"flight number": "KM 1"},
    departure=datetime(2013, 1, 1, 5, 17, tzinfo=UTC),
    duration=timedelta(hours=3, minutes=47),
    fare=Decimal("199.90"),
    booking=UUID("12345678-1234-5678-1234-567812345678"),
    seats={1, 2, 3},
    luggage={1: 23.5},
    remark=b"window",
)


@pytest.mark.parametrize("codec", ["json", "msgpack"])
async def test_a_strict_model_comes_back_as_it_went(codec: Codec) -> None:
    async with SqliteCache("memory:") as cache:
        flights = cache.of(Flight, codec=codec)
        await flights.set("key", FLIGHT)
        assert await flights.get("key") == FLIGHT


async def test_msgpack_is_smaller_and_says_what_it_is() -> None:
    async with SqliteCache("memory:") as cache:
        for codec in ("json", "msgpack"):
            await cache.of(Flight, prefix=codec, codec=codec).set("", FLIGHT)
        text, packed = await cache.get("json"), await cache.get("msgpack")
        assert text is not None and packed is not None
        assert text.startswith(b"{") and packed.startswith(b"\xc1\x01")
        assert len(packed) < len(text)


async def test_a_view_reads_what_the_other_codec_wrote() -> None:
    async with SqliteCache("memory:") as cache:
        old, new = cache.of(Flight), cache.of(Flight, codec="msgpack")

        async def never() -> Flight:
            raise AssertionError("it was there")

        await old.set("before", FLIGHT)
        await new.set("after", FLIGHT)
        for view in (old, new):
            for key in ("before", "after"):
                assert await view.get_or_load(key, never, ttl="1m") == FLIGHT


TOO_DEEP = b"\xc1\x01" + b"\x91" * 100_000 + b"\xc0"


@pytest.mark.parametrize(
    "content", [b"\xc1\x02later", b"\xc1\x01\xc1", b"\xc1\x01", b"\xc1", b"\xc1\x01\x81\xa1a\xff", TOO_DEEP]
)
async def test_what_cannot_be_read_counts_as_missing(content: bytes) -> None:
    async with SqliteCache("memory:") as cache:
        flights = cache.of(Flight, codec="msgpack")
        await cache.set("Flight:key", content)
        assert await flights.get("key") is None

        async def load() -> Flight:
            return FLIGHT

        assert await flights.get_or_load("key", load, ttl="1m") == FLIGHT
        assert await flights.get("key") == FLIGHT


async def test_without_its_library_msgpack_is_refused_at_once_and_what_others_wrote_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with SqliteCache("memory:") as cache:
        await cache.of(Flight, codec="msgpack").set("key", FLIGHT)
        for name in [name for name in sys.modules if name.split(".")[0] == "msgspec"]:
            monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(MissingExtra, match=r"pip install 'kmp-storage\[msgpack\]'"):
            cache.of(Flight, codec="msgpack")
        assert await cache.of(Flight).get("key") is None


async def test_a_codec_that_does_not_exist_is_refused() -> None:
    unsafe: Any = "pickle"
    async with SqliteCache("memory:") as cache:
        with pytest.raises(InvalidInput, match=r"codec: must be one of json, msgpack; for example"):
            cache.of(Flight, codec=unsafe)


class Reading(BaseModel):
    degrees: float
    before: list[float | None] = []


@pytest.mark.parametrize("codec", ["json", "msgpack"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
async def test_a_number_that_is_not_finite_comes_back_as_it_went(codec: Codec, number: float) -> None:
    async with SqliteCache("memory:") as cache:
        readings = cache.of(Reading, codec=codec)
        await readings.set("key", Reading(degrees=number, before=[1.5, None, number]))
        found = await readings.get("key")
        assert found is not None
        assert repr((found.degrees, found.before)) == repr((number, [1.5, None, number]))


class Anything(BaseModel):
    value: Any


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("codec", "value"),
    [
        ("msgpack", 1 << 70),
        *((codec, value) for codec in ("json", "msgpack") for value in (object(), b"\xff", "\ud800", nested(1500))),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else type(value).__name__,
)
async def test_what_a_codec_cannot_carry_is_refused(codec: Codec, value: Any) -> None:
    async with SqliteCache("memory:") as cache:
        with pytest.raises(InvalidInput, match=f"value: cannot be written as {codec}: .*; for example"):
            await cache.of(Anything, codec=codec).set("key", Anything(value=value))
