"""A service that is configured wrongly refuses to start: one screen, an exit code, no traceback, and no secret."""

from __future__ import annotations

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest

import kmp_core
import kmp_messaging
import kmp_storage
from kmp_core.settings import Settings
from kmp_core.settings.catalogue import installed_classes

SECRET = "correct-horse-battery"

PROGRAM = """
import kmp_core
from pydantic import Field, SecretStr
from kmp_core import Service
from kmp_core.secrets import SecretStore
from kmp_core.settings import Settings
from kmp_storage import Cache

class DatabaseSettings(Settings, prefix="acme.database"):
    user: str
    password: SecretStr
    port: int = Field(5432, ge=1, le=65535)

async def main():
    async with Service("delays") as service:
        DatabaseSettings.load()
        await service.get(Cache)
        await (await service.get(SecretStore)).get("missing-secret")

kmp_core.run(main)
"""

RIGHT = {"KMP_ACME_DATABASE_USER": "u", "KMP_ACME_DATABASE_PASSWORD": SECRET}


def run(tmp_path, **variables):
    environ = {name: value for name, value in os.environ.items() if not name.upper().startswith("KMP_")}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environ | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) <= 20
    assert SECRET not in result.stdout + result.stderr
    return result


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"KMP_PROJECT": "skyl\u0456ne"}, "KMP_PROJECT: contains U+0456"),
        ({"KMP_PROJECT": "acme/../acme2"}, "KMP_PROJECT: may hold only"),
        ({"KMP_PROJCT": SECRET}, "KMP_PROJCT: is no setting; did you mean KMP_PROJECT?"),
        ({"KMP_ACME_DATABASE_PORT": "five"}, "KMP_ACME_DATABASE_PORT: must be a whole number"),
        ({"KMP_ACME_DATABASE_PORT": SECRET}, "for example 5432"),
        ({"KMP_ACME_DATABASE_USER": ""}, "KMP_ACME_DATABASE_USER: is missing"),
        ({"KMP_ACME_DATABASE_PASSWROD": SECRET}, "did you mean KMP_ACME_DATABASE_PASSWORD?"),
        ({"KMP_PROJECT": "acme", "KMP_STORAGE_CACHE_URL": f"redsi://u:{SECRET}@host"}, "redsi"),
        ({"KMP_STORAGE_CACHE_URL": f"redis://u:{SECRET}@host"}, "KMP_PROJECT: must be set"),
        ({"KMP_STORAGE_CACHE_URL": SECRET}, "KMP_STORAGE_CACHE_URL: must begin with a scheme"),
        ({"KMP_STORAGE_CACHE_MAX_BYTES": SECRET}, "KMP_STORAGE_CACHE_MAX_BYTES: "),
        ({"KMP_CORE_SECRETS_URL": "file:///no/such/place"}, "KMP_CORE_SECRETS_URL: the directory of secrets"),
        ({"KMP_ENV_FILE": "no-such-file"}, "KMP_ENV_FILE: no-such-file does not exist"),
        ({"KMP_SECRETS_DIR": "no-such-directory"}, "KMP_SECRETS_DIR: no-such-directory cannot be listed"),
    ],
)
def test_a_wrong_variable_stops_the_start(tmp_path, variables, words):
    result = run(tmp_path, **RIGHT | variables)
    assert result.returncode == 78, result.stderr
    assert words in result.stderr


def test_a_wrong_manifest_stops_the_start(tmp_path):
    (tmp_path / "kmp.toml").write_text(f"project = 'acme'\n[settings.acme.database]\npassword = {SECRET}\n")
    result = run(tmp_path, **RIGHT)
    assert result.returncode == 78
    assert f"{tmp_path / 'kmp.toml'}: is not TOML" in result.stderr
    assert "line 3" in result.stderr


def test_a_secret_that_is_not_there_is_named(tmp_path):
    result = run(tmp_path, **RIGHT)
    assert result.returncode == 78
    assert "KMP_SECRET_MISSING_SECRET is missing" in result.stderr


def test_every_settings_class_of_our_packages_is_announced():
    for package in (kmp_core, kmp_storage, kmp_messaging):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    ours = {
        one
        for one in Settings.__subclasses__()
        if one.__module__.startswith(("kmp_core", "kmp_storage", "kmp_messaging"))
    }
    assert ours == set(installed_classes())
