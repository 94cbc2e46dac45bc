"""Secrets that the platform hands to a process: as variables, or as files of a mounted directory."""

from __future__ import annotations

import asyncio
import logging
import os
from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import unquote

from pydantic import Field

from kmp_core.clock import SYSTEM_CLOCK, Clock
from kmp_core.context import Context
from kmp_core.deadlines import Duration, Timeout, deadline
from kmp_core.errors import ConfigurationError, Fault, KmpError, PermissionDenied, Unavailable
from kmp_core.resource import Provider
from kmp_core.secrets import Secret, SecretNotFound, SecretStore, check_secret_name
from kmp_core.settings import Settings
from kmp_core.settings.files import UnreadableFile, read_small_file
from kmp_core.telemetry import Telemetry

__all__ = ["EnvironmentSecrets", "MountedSecrets", "SecretsSettings"]

_log = logging.getLogger("kmp_core.secrets")


class SecretsSettings(Settings, prefix="core.secrets"):
    """Tune how secrets are read and watched."""

    timeout: Duration = timedelta(seconds=5)
    """How long a call may take where it names no timeout of its own."""

    poll_interval: Duration = Field(default=timedelta(seconds=5), gt=timedelta(0))
    """How often a watched secret is looked at. Watching by looking works on every file system and mount."""

    settle_time: Duration = timedelta(seconds=1)
    """How long a file must have been left alone before it counts as written to its end."""


class _Look(NamedTuple):
    """What one look at a secret showed; `state` differs when it was written again, even with the same value."""

    content: bytes
    state: tuple[object, ...] = ()
    written_at: float | None = None


class _PolledSecrets(SecretStore, Provider):
    """A store that is read again and again."""

    embedded = True

    def __init__(self, system: str, project: str, settings: SecretsSettings | None, clock: Clock) -> None:
        self._settings = settings or SecretsSettings.load()
        self._clock = clock
        self._project = project
        self._telemetry = Telemetry("db", system, project=project, scope="kmp_core.secrets")

    @abstractmethod
    def _look(self, name: str) -> _Look:
        """Read the secret. Raises a `KmpError`; runs in a thread."""

    async def get(self, name: str, *, timeout: Timeout = None) -> Secret:
        self.ensure_open()
        check_secret_name(name)
        with self._telemetry.call("get"):
            return Secret((await self._settled(name, timeout)).content, name=name)

    async def watch(self, name: str) -> AsyncIterator[Secret]:
        self.ensure_open()
        last = await self._settled(check_secret_name(name), None)
        yield Secret(last.content, name=name)
        lost = False
        while True:
            await self._clock.sleep(self._settings.poll_interval.total_seconds())
            self.ensure_open()
            try:
                look = await self._settled(name, None)
            except KmpError as error:
                if not lost:
                    _log.warning("the secret %s is gone, its last value stays in use: %s", name, error)
                lost = True
                continue
            if lost:
                _log.info("the secret %s is back", name)
                lost = False
            if look.content != last.content:
                yield Secret(look.content, name=name)
            last = look

    async def _settled(self, name: str, timeout: Timeout) -> _Look:
        """Look until what is there has been left alone for the settle time."""
        settle = self._settings.settle_time.total_seconds()
        seconds = self._settings.timeout if timeout is None else timeout
        async with deadline(seconds, what=f"reading the secret {name}", outcome_unknown=False):
            before: _Look | None = None
            while True:
                look = await asyncio.to_thread(self._look, name)
                at_rest = look.written_at is None or self._clock.time() - look.written_at >= settle
                if at_rest or look == before:
                    return self._whole(name, look)
                before = look
                await self._clock.sleep(settle)

    def _whole(self, name: str, look: _Look) -> _Look:
        if not look.content:
            raise Unavailable(f"the secret {name} is empty", project=self._project, key=name)
        return look


class EnvironmentSecrets(_PolledSecrets):
    """Secrets in variables: `database-password` is `KMP_SECRET_DATABASE_PASSWORD`, or another prefix, `env:ACME_`."""

    def __init__(
        self,
        url: str = "env:",
        *,
        project: str = "local",
        environ: Mapping[str, str] | None = None,
        settings: SecretsSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__("env", project, settings, clock)
        self._prefix = url.partition(":")[2] or "KMP_SECRET_"
        self._environ = os.environ if environ is None else environ

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        return cls(url, project=context.project)

    async def _open(self) -> None:
        """Nothing to connect to."""

    async def _close(self) -> None:
        """Nothing to let go of."""

    async def _check(self) -> None:
        """The environment is always there."""

    def _look(self, name: str) -> _Look:
        variable = self._prefix + "".join(c if c.isalnum() else "_" for c in name).upper()
        value = self._environ.get(variable)
        if not value:
            raise SecretNotFound(name, variable, project=self._project)
        return _Look(value.encode(errors="surrogateescape"))


class MountedSecrets(_PolledSecrets):
    """Secrets as files of one directory, `file:///etc/secrets`, as Kubernetes, Docker and systemd mount them.

    Kubernetes replaces all files at once, by renaming the link `..data`; that is seen as one change. A link that
    leads out of the directory is refused. A file that is rewritten in place is delivered when it has been left alone
    for `settle_time`; to replace one safely, write another file and rename it. An empty file is no secret.
    """

    def __init__(
        self,
        url: str,
        *,
        project: str = "local",
        settings: SecretsSettings | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__("file", project, settings, clock)
        self._directory = Path(unquote(url.partition(":")[2].removeprefix("//")))

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        return cls(url, project=context.project)

    async def _open(self) -> None:
        problem = await asyncio.to_thread(self._problem)
        if problem is not None:
            raise ConfigurationError(Fault("KMP_CORE_SECRETS_URL", problem, "file:///etc/secrets"))

    async def _close(self) -> None:
        """Files are open only while they are read."""

    async def _check(self) -> None:
        problem = await asyncio.to_thread(self._problem)
        if problem is not None:
            raise Unavailable(problem, backend="file", project=self._project)

    def _problem(self) -> str | None:
        if not self._directory.name:
            return "the URL names no directory"
        try:
            with os.scandir(self._directory):
                return None
        except (OSError, ValueError) as error:
            reason = os.strerror(error.errno or 0) if isinstance(error, OSError) else "not a path"
            return f"the directory of secrets {self._directory} cannot be listed ({reason})"

    def _look(self, name: str, attempts: int = 3) -> _Look:
        # The links are followed first, and where they lead is checked.
        root, path = Path(os.path.realpath(self._directory)), Path(os.path.realpath(self._directory / name))
        if not path.is_relative_to(root):
            raise PermissionDenied(f"the secret {name} leads out of {root}", project=self._project, key=name)
        try:
            content, state = read_small_file(path, flags=os.O_NOFOLLOW)
        except UnreadableFile as error:
            if error.missing and attempts > 1:  # a rotation may have removed the target before it was opened
                return self._look(name, attempts - 1)
            raise self._refusal(name, error) from None
        return _Look(content, (path, state.st_ino, state.st_mtime_ns, state.st_size), state.st_mtime)

    def _refusal(self, name: str, error: UnreadableFile) -> KmpError:
        if error.missing:
            return SecretNotFound(name, str(self._directory / name), project=self._project)
        message = f"the secret {name} {error.problem} in {self._directory}"
        return Unavailable(message, backend="file", project=self._project, key=name)
