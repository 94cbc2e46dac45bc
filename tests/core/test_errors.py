"""Errors carry their facts wherever they go."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from kmp_core import errors
from kmp_core.errors import (
    BreakerOpen,
    ConfigurationError,
    DeadlineExceeded,
    Fault,
    InvalidInput,
    KmpError,
    MissingExtra,
    NotFound,
    OutcomeUnknown,
    Overloaded,
    PluginError,
    PoolExhausted,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from kmp_core.secrets import SecretNotFound

EXAMPLES = [
    NotFound("gone", project="acme", key="k"),
    InvalidInput("limit", "must be positive", example="5", row=3, project="acme", key="k"),
    ConfigurationError(Fault("KMP_A", "is wrong", "x", "environment"), Fault("KMP_B", "too"), heading="No"),
    PluginError(Fault("plugin", "failed")),
    MissingExtra("asyncpg", install="kmp-storage[timescale]"),
    Unsupported("sign", provider="FileBucket", instead="use another"),
    Unauthenticated("expired"),
    Unavailable("down", backend="redis", outcome_unknown=True),
    PoolExhausted("none"),
    BreakerOpen("open", retry_after=2, backend="redis"),
    Overloaded("later", retry_after=3, backend="redis"),
    DeadlineExceeded("late", backend="redis", outcome_unknown=True),
    OutcomeUnknown("sent", backend="redis"),
    SecretNotFound("db", "KMP_SECRETS_DB", project="acme"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_error_survives_the_way_between_processes(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.args, vars(again)) == (str(error), error.args, vars(error))


POOL = """
from concurrent.futures import ProcessPoolExecutor
from kmp_core.errors import InvalidInput

def refuse():
    raise InvalidInput("limit", "must be positive", example="5")

if __name__ == "__main__":
    with ProcessPoolExecutor(1) as pool:
        for _ in range(2):
            try:
                pool.submit(refuse).result()
            except InvalidInput as error:
                print(error)
"""


def test_an_error_of_a_worker_process_does_not_end_its_pool(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(POOL)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "limit: must be positive; for example 5\n" * 2, done.stderr


def test_every_error_is_in_the_one_tree():
    classes = [getattr(errors, name) for name in errors.__all__ if name not in {"ErrorTable", "Fault"}]
    assert len(classes) > 15
    assert all(issubclass(one, KmpError) for one in classes)
