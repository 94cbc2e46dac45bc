"""What a dead letter says of a failure."""

import pytest
from pydantic import BaseModel, ValidationError

from kmp_core.errors import NotFound
from kmp_messaging.redaction import cause_of, detail_of

TOKEN = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJ4In0.c2ln"


@pytest.mark.parametrize(
    "message",
    [
        "password=hunter2 refused",
        "{'password': 'hunter2', 'user': 'ann'}",
        '{"api_key": "hunter2"}',
        "DB_PASSWORD: hunter2",
        "Authorization: Bearer hunter2",
        "bearer hunter2 expired",
        "cannot reach postgres://ann:hunter2@db/flights",
        f"token was {TOKEN}",
    ],
)
def test_secrets_are_left_out(message):
    detail = detail_of(ValueError(message))
    assert "hunter2" not in detail
    assert TOKEN not in detail
    assert "***" in detail


def test_ordinary_words_stay_and_are_bounded():
    assert detail_of(ValueError("no airport XYZ")) == "no airport XYZ"
    assert len(detail_of(ValueError("x" * 100_000))) <= 500


def test_a_validation_error_quotes_no_value():
    class Account(BaseModel):
        number: int

    with pytest.raises(ValidationError) as caught:
        Account.model_validate({"number": "hunter2"})
    assert "hunter2" not in detail_of(caught.value)
    assert "number" in detail_of(caught.value)


def test_the_cause_names_the_class():
    assert cause_of(ValueError()) == "ValueError"
    assert cause_of(NotFound("x")) == "kmp_core.errors.NotFound"
