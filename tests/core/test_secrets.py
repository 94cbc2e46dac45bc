"""Secrets are read from variables and mounted files, watched through rotation, and never shown."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import time

import pytest
from pydantic import BaseModel

from kmp_core.errors import ConfigurationError, InvalidInput, NotFound, PermissionDenied, Unavailable
from kmp_core.secrets import Secret, embedded
from kmp_core.secrets.embedded import EnvironmentSecrets, MountedSecrets, SecretsSettings
from kmp_core.secrets.testing import SecretStoreContract
from kmp_core.settings.files import read_small_file
from kmp_core.testing import ManualClock

QUICK = SecretsSettings.load(poll_interval="10ms", settle_time=0)


class TestEnvironmentSecrets(SecretStoreContract):
    @pytest.fixture
    def environs(self):
        return {"acme": {}, "acme2": {}}

    @pytest.fixture
    def make(self, environs):
        return lambda project="acme": EnvironmentSecrets(project=project, environ=environs[project], settings=QUICK)

    @pytest.fixture
    def put(self, environs):
        def put(name, value, project="acme"):
            variable = "KMP_SECRET_" + name.upper().replace("-", "_").replace(".", "_")
            environs[project].pop(variable, None)
            if value is not None:
                environs[project][variable] = value.decode()

        return put


class TestMountedSecrets(SecretStoreContract):
    """Files that are replaced by renaming."""

    @pytest.fixture
    def make(self, tmp_path):
        def make(project="acme"):
            (tmp_path / project).mkdir(exist_ok=True)
            return MountedSecrets(f"file://{tmp_path / project}", project=project, settings=QUICK)

        return make

    @pytest.fixture
    def put(self, tmp_path):
        def put(name, value, project="acme"):
            directory = tmp_path / project
            directory.mkdir(exist_ok=True)
            if value is None:
                (directory / name).unlink()
                return
            (directory / ".new").write_bytes(value)
            (directory / ".new").replace(directory / name)

        return put


class TestMountedSecretsOnKubernetes(TestMountedSecrets):
    """Files that are links through `..data`, all replaced at once, as the kubelet does."""

    @pytest.fixture
    def put(self, tmp_path):
        def put(name, value, project="acme"):
            directory = tmp_path / project
            directory.mkdir(exist_ok=True)
            data = directory / "..data"
            old = directory / data.readlink() if data.is_symlink() else None
            new = directory / f"..{time.time_ns()}"
            if old is None:
                new.mkdir()
            else:
                shutil.copytree(old, new)
            (new / name).unlink(missing_ok=True)
            if value is None:
                (directory / name).unlink()
            else:
                (new / name).write_bytes(value)
            (directory / "..data_tmp").symlink_to(new.name)
            (directory / "..data_tmp").rename(data)
            if value is not None and not (directory / name).is_symlink():
                (directory / name).symlink_to(f"..data/{name}")
            if old is not None:
                shutil.rmtree(old)

        return put


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - other processes and threads set no events
            await asyncio.sleep(0.002)


async def test_many_rotations_never_show_a_half_or_missing_value(tmp_path):
    writer = """
import os, shutil, sys, time
root = sys.argv[1]
old = None
for turn in range(300):
    new = f"{root}/..{turn}"
    os.mkdir(new)
    with open(f"{new}/key", "w") as file:
        file.write(f"{turn:04}" * 5000)
    os.symlink(f"..{turn}", f"{root}/..tmp")
    os.rename(f"{root}/..tmp", f"{root}/..data")
    if turn == 0:
        os.symlink("..data/key", f"{root}/key")
    if old: shutil.rmtree(old)
    old = new
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", writer, str(tmp_path))
    try:
        await until((tmp_path / "key").exists)
        seen = []
        async with MountedSecrets(f"file:{tmp_path}", settings=QUICK) as store:
            while not seen or seen[-1] != "0299":
                text = (await store.get("key")).reveal()
                assert text == text[:4] * 5000
                seen.append(text[:4])
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    assert seen == sorted(seen)
    assert len(set(seen)) > 1


async def test_a_file_that_is_still_being_written_is_not_delivered(tmp_path):
    clock = ManualClock()
    settings = SecretsSettings.load(poll_interval="10s", settle_time="2s")
    file = tmp_path / "password"

    def write(text):
        file.write_text(text)
        os.utime(file, (clock.time(), clock.time()))

    write("old")
    clock.advance("1h")
    async with (
        MountedSecrets(f"file://{tmp_path}", settings=settings, clock=clock) as store,
        contextlib.aclosing(store.watch("password")) as values,
    ):
        assert (await anext(values)).reveal() == "old"
        upcoming = asyncio.ensure_future(anext(values))
        await until(lambda: clock.sleeping)
        clock.advance("8s")
        for part in ("", "ne", "new-pass", "new-password"):
            clock.advance("1s")
            write(part)
            clock.advance("1s")  # the watch looks now, a second after the last byte
            await until(lambda: clock.sleeping or upcoming.done())
            assert not upcoming.done(), "a half-written password was delivered"
        clock.advance("2s")
        await until(upcoming.done)
        assert upcoming.result().reveal() == "new-password"


async def test_a_secret_that_vanishes_keeps_its_value_and_says_so_once(tmp_path, caplog):
    class Counting(MountedSecrets):
        looks = 0

        def _look(self, name, *rest):
            self.looks += 1
            return super()._look(name, *rest)

    (tmp_path / "password").write_text("kept")
    caplog.set_level(logging.INFO, "kmp_core.secrets")
    async with (
        Counting(f"file://{tmp_path}", settings=QUICK) as store,
        contextlib.aclosing(store.watch("password")) as values,
    ):
        await anext(values)
        upcoming = asyncio.ensure_future(anext(values))
        (tmp_path / "password").unlink()
        await until(lambda: caplog.records)
        looks = store.looks
        await until(lambda: store.looks > looks + 9)  # three a poll while it is missing
        (tmp_path / "password").write_text("kept")  # the same value again is no rotation
        await until(lambda: len(caplog.records) == 2)
        assert not upcoming.done()
        (tmp_path / "password").write_text("other")
        assert (await upcoming).reveal() == "other"
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "password" in caplog.text
    assert "kept" not in caplog.text.replace("its last value", "")


@pytest.mark.parametrize("target", ["outside", "../outside", "/etc/hostname"])
async def test_a_link_out_of_the_directory_is_refused(tmp_path, target):
    mount = tmp_path / "mount"
    mount.mkdir()
    (tmp_path / "outside").write_text("not yours")
    (mount / "password").symlink_to(tmp_path / target if target == "outside" else target)
    async with MountedSecrets(f"file://{mount}", settings=QUICK) as store:
        with pytest.raises(PermissionDenied, match="leads out of"):
            await store.get("password")


async def test_a_file_that_turns_into_a_link_after_it_was_looked_at_is_not_followed(tmp_path, monkeypatch):
    mount = tmp_path / "mount"
    mount.mkdir()
    (tmp_path / "outside").write_text("not yours")
    (mount / "password").write_text("yours")

    def swapped(path, **flags):
        # What whoever may write to the directory does between the look at where a name leads, and the reading.
        path.unlink()
        path.symlink_to(tmp_path / "outside")
        return read_small_file(path, **flags)

    async with MountedSecrets(f"file://{mount}", settings=QUICK) as store:
        assert (await store.get("password")).reveal() == "yours"
        monkeypatch.setattr(embedded, "read_small_file", swapped)
        with pytest.raises(Unavailable, match="password cannot be read"):
            await store.get("password")
        monkeypatch.undo()
        with pytest.raises(PermissionDenied, match="leads out of"):
            await store.get("password")


async def test_a_rotation_between_the_look_and_the_reading_is_no_missing_secret(tmp_path, monkeypatch):
    mount = tmp_path / "mount"
    for version, value in (("..1", "old"), ("..2", "new")):
        (mount / version).mkdir(parents=True)
        (mount / version / "password").write_text(value)
    (mount / "..data").symlink_to("..1")
    (mount / "password").symlink_to("..data/password")

    def rotated(path, **flags):
        monkeypatch.undo()
        (mount / "..tmp").symlink_to("..2")
        (mount / "..tmp").rename(mount / "..data")
        shutil.rmtree(mount / "..1")
        return read_small_file(path, **flags)

    async with MountedSecrets(f"file://{mount}", settings=QUICK) as store:
        monkeypatch.setattr(embedded, "read_small_file", rotated)
        assert (await store.get("password")).reveal() == "new"


async def test_a_neighbour_directory_with_a_longer_name_is_outside(tmp_path):
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme2").mkdir()
    (tmp_path / "acme2" / "password").write_text("not yours")
    (tmp_path / "acme" / "password").symlink_to("../acme2/password")
    async with MountedSecrets(f"file://{tmp_path / 'acme'}", settings=QUICK) as store:
        with pytest.raises(PermissionDenied):
            await store.get("password")


def _directory(path):
    path.mkdir()


def _empty(path):
    path.touch()


def _huge(path):
    path.write_bytes(b"x" * (1 << 20) + b"x")


@pytest.mark.parametrize("prepare", [_directory, _empty, _huge, os.mkfifo])
async def test_a_file_that_is_no_secret_is_an_error_and_not_a_hang(tmp_path, prepare):
    prepare(tmp_path / "password")
    async with MountedSecrets(f"file://{tmp_path}", settings=QUICK) as store:
        with pytest.raises(Unavailable, match="password"):
            await store.get("password")


@pytest.mark.parametrize("url", ["file:", "file://", "file:///no/such/directory", "file:///etc/hostname"])
async def test_a_url_that_names_no_directory_does_not_open(url):
    with pytest.raises(ConfigurationError, match="KMP_CORE_SECRETS_URL"):
        await MountedSecrets(url, settings=QUICK).open()


async def test_a_directory_that_was_unmounted_fails_the_check(tmp_path):
    mount = tmp_path / "mount"
    mount.mkdir()
    async with MountedSecrets(f"file://{mount}", settings=QUICK) as store:
        await store.check()
        mount.rmdir()
        with pytest.raises(Unavailable):
            await store.check()


async def test_the_environment_is_read_under_a_prefix_of_its_own(monkeypatch):
    monkeypatch.setenv("DATABASE_PASSWORD", "foreign")
    monkeypatch.setenv("KMP_SECRET_DATABASE_PASSWORD", "ours")
    monkeypatch.setenv("ACME_DATABASE_PASSWORD", "prefixed")
    monkeypatch.setenv("KMP_SECRET_EMPTY", "")
    async with EnvironmentSecrets() as store, EnvironmentSecrets("env:ACME_") as other:
        assert (await store.get("database-password")).reveal() == "ours"
        assert (await other.get("database-password")).reveal() == "prefixed"
        with pytest.raises(NotFound, match="KMP_SECRET_EMPTY"):
            await store.get("empty")


def test_bytes_that_are_not_text_are_refused_without_showing_them():
    with pytest.raises(InvalidInput) as caught:
        Secret(b"horse\xff", name="key").reveal()
    assert caught.value.__context__ is None
    assert "horse" not in str(caught.value)
    assert Secret(b"horse\xff").reveal_bytes() == b"horse\xff"


def test_secrets_compare_by_value():
    assert Secret("a", name="x") == Secret(b"a", name="y")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1


def test_a_model_holds_a_secret_and_dumps_a_mask():
    class Login(BaseModel):
        password: Secret

    login = Login.model_validate({"password": "battery"})
    assert login.password.reveal() == "battery"
    assert "battery" not in repr(login) + str(login) + login.model_dump_json()


def test_an_uncaught_error_beside_a_secret_does_not_print_it():
    program = """
from kmp_core.secrets import Secret
password = Secret("correct-horse")
raise RuntimeError(f"login with {password} failed", password)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "login with" in result.stderr
    assert "correct-horse" not in result.stdout + result.stderr.replace('Secret("correct-horse")', "")
