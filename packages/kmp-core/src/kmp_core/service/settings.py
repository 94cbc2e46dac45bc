"""What a service is told from outside: whom it works for, where its data lives, and the URL of each capability."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from kmp_core import plugins
from kmp_core.capability import CapabilitySpec, declared
from kmp_core.deadlines import Duration
from kmp_core.errors import ConfigurationError, Fault
from kmp_core.logs import QUIET
from kmp_core.project import Environment, Project, ServiceName
from kmp_core.settings import Settings
from kmp_core.settings.sources import Key, Sources
from kmp_core.settings.url import ConnectionUrl

__all__ = ["Configuration", "ServiceSettings", "configure", "configure_logs", "undecided"]

_LOCAL = "local"


class ServiceSettings(Settings, prefix=""):
    """Settings that every service has."""

    project: Project = Project(_LOCAL)
    """The tenant that the service belongs to. Needed as soon as any capability lives on a server."""

    service: ServiceName = ServiceName("service")
    """What the service is called; usually the argument of `Service(...)`."""

    environment: Environment = Environment("dev")
    """`dev`, `test`, `staging`, `prod` or the team's own word; selects the overlay of `kmp.toml`."""

    directory: Path = Path(".kmp")
    """Where embedded providers keep their files, in one directory per project."""

    open_timeout: Duration = timedelta(seconds=30)
    """How long one capability may take to open, what it depends on included, before the start fails."""

    shutdown_delay: Duration = timedelta(0)
    """How long the service goes on serving after readiness is off, so that load balancers notice first."""

    shutdown_grace: Duration = timedelta(seconds=25)
    """How long a service may take from the first signal to its end. Keep it below what the orchestrator allows."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """`json` for machines, `console` for people; `auto` chooses `console` on a terminal."""

    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The least severe log lines that are written."""

    log_quiet: tuple[str, ...] = Field(QUIET, examples=["httpcore,httpx"])
    """Loggers that write warnings and worse only, whatever `log_level` is. `[]` lets all of them speak."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A service's settings, checked, and the sources that they came from."""

    settings: ServiceSettings
    sources: Sources

    @property
    def directory(self) -> Path:
        """Where the project's embedded data lives."""
        return self.settings.directory / self.settings.project

    def url(self, spec: CapabilitySpec) -> str:
        """The capability's URL. Raises `ConfigurationError` for a wrong one, and for a server's without a project."""
        url, faults = self._url(spec)
        if faults:
            raise ConfigurationError(*faults)
        return url

    def faults(self) -> list[Fault]:
        """All that is wrong with the URLs of the capabilities that the program knows by now."""
        return list(dict.fromkeys(fault for spec in declared() for fault in self._url(spec)[1]))

    def unanswered(self) -> list[Fault]:
        """The URLs that are set and that no installed provider answers to, or none that can be used."""
        return [fault for spec in declared() if self._is_set(spec) for fault in _unanswered(spec, self._url(spec)[0])]

    def _is_set(self, spec: CapabilitySpec) -> bool:
        return self.sources.find(_url_key(spec)) is not None and not self._url(spec)[1]

    def _url(self, spec: CapabilitySpec) -> tuple[str, list[Fault]]:
        key = _url_key(spec)
        found = self.sources.find(key)
        if found is None:
            return spec.default, []
        from pydantic import TypeAdapter, ValidationError

        try:
            url = TypeAdapter(ConnectionUrl).validate_python(found.value)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]["msg"]
            return "", [Fault(key.variable, problem, spec.default, found.source)]
        if "project" not in self.settings.model_fields_set and _is_server(spec, url.reveal()):
            missing = Fault("KMP_PROJECT", f"must be set, since {key.variable} names a server", "skyline")
            return "", [missing, *_unanswered(spec, url.reveal())]
        return url.reveal(), []


def _url_key(spec: CapabilitySpec) -> Key:
    return Key(tuple(spec.name.split(".")), "url")


def _unanswered(spec: CapabilitySpec, url: str) -> tuple[Fault, ...]:
    """What `get` would tell next: a start that is refused anyway names it too."""
    try:
        plugins.find(spec, url)
    except ConfigurationError as error:
        return error.faults
    return ()


def _is_server(spec: CapabilitySpec, url: str) -> bool:
    """What the provider says of itself, or, where none can be asked, what the URL looks like."""
    if url.partition(":")[0].lower() == spec.default.partition(":")[0]:
        return False  # known without importing it
    try:
        provider = plugins.find(spec, url)
    except ConfigurationError:  # `get` tells
        return re.match(r"[^:]*://[^/]", url) is not None
    return not getattr(provider, "embedded", False)


def undecided(sources: Sources, **given: Any) -> ServiceSettings:
    """Stands in for settings with faults, which tell no more than whether a project is named."""
    named = "project" in given or sources.find(ServiceSettings.key("project")) is not None
    return ServiceSettings.model_construct({"project"} if named else set())


def configure(environment: str | None, arguments: dict[str, Any]) -> Configuration:
    """Read everything once. Raises one `ConfigurationError` with all faults."""
    sources = Sources.read(environment=environment)
    given = {name: value for name, value in arguments.items() if value is not None}
    if environment is not None:
        given["environment"] = environment
    with sources.used():
        try:
            configuration = Configuration(ServiceSettings.load(**given), sources)
        except ConfigurationError as error:
            others = Configuration(undecided(sources, **given), sources).faults()
            raise ConfigurationError(*dict.fromkeys((*error.faults, *others))) from None
    faults = configuration.faults()
    if faults:
        raise ConfigurationError(*faults)
    return configuration


def configure_logs(configuration: Configuration) -> None:
    """Give the process log lines, unless it has some: a program's own configuration of `logging` stays."""
    from kmp_core import logs

    settings = configuration.settings
    if not logs.configured():
        logs.configure(
            project=settings.project,
            service=settings.service,
            environment=settings.environment,
            format=settings.log_format,
            level=settings.log_level,
            quiet=settings.log_quiet,
        )
