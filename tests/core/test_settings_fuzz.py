"""Whatever stands in the sources, the outcome is settings or a list of faults, and no fault holds a secret."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ByteSize, Field, SecretStr, field_validator

from kmp_core.deadlines import Duration
from kmp_core.errors import ConfigurationError
from kmp_core.settings import Settings
from kmp_core.settings.sources import Sources
from kmp_core.settings.url import ConnectionUrl

MARK = "s3cr3t-m4rk"


class FuzzSettings(Settings, prefix="acme.fuzz"):
    """Careless on purpose."""

    number: int = 1
    wait: Duration
    size: ByteSize
    names: tuple[str, ...] = ()
    limits: dict[str, int] = Field(default_factory=dict)
    password: SecretStr
    url: ConnectionUrl

    @field_validator("password")
    @classmethod
    def _quotes(cls, value: SecretStr) -> SecretStr:
        raise ValueError(f"what kind of password is {value.get_secret_value()}?")


texts = st.text(st.characters(blacklist_characters="\0"), max_size=30)
FIELDS = [name.upper() for name in FuzzSettings.model_fields]


def load(environ, directory):
    with Sources.read(environ, directory=directory).used(), pytest.raises(ConfigurationError) as caught:
        FuzzSettings.load()
    assert caught.value.__context__ is None
    return str(caught.value)


@given(st.dictionaries(st.sampled_from(FIELDS), texts), texts)
@example({"LIMITS": '{"a": "s3cr3t-m4rk"}'}, "")
@example({"NAMES": "[" * 5000}, "")
def test_any_text_in_any_variable_is_settings_or_faults(values, tail):
    environ = {f"KMP_ACME_FUZZ_{name}": value + MARK for name, value in values.items()}
    environ["KMP_ACME_FUZZ_PASSWORD"] = f"{tail}{MARK}{tail}"
    environ["KMP_ACME_FUZZ_URL"] = f"x://u:{MARK}{tail}@h"
    with tempfile.TemporaryDirectory() as directory:
        assert MARK not in load(environ, Path(directory))


@given(st.binary(max_size=60), st.sampled_from(["kmp.toml", ".env", "mounted/KMP_ACME_FUZZ_PASSWORD"]))
@example(b"[settings.acme]\nfuzz = 7", "kmp.toml")
@example(b"[settings.acme.fuzz.password]\nx = 's3cr3t-m4rk'", "kmp.toml")
@example(b"[settings.acme.fuzz]\npassword = ['s3cr3t-m4rk']", "kmp.toml")
@example(b"KMP_ACME_FUZZ_PASSWORD='s3cr3t-m4rk", ".env")
def test_any_bytes_in_any_file_are_settings_or_faults(content, name):
    with tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        (directory / "mounted").mkdir()
        (directory / name).write_bytes(content)
        assert MARK not in load({"KMP_SECRETS_DIR": "mounted"}, directory)
