"""What may be kept as a model: not a secret, of which only the mask would come back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel, RootModel, Secret, SecretBytes, SecretStr
from typing_extensions import TypedDict

from kmp_core.errors import InvalidInput
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
