"""The settings of a service as a whole: who it is, where it keeps its data, how it starts, stops and logs."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal

from pydantic import Field

from kmp_core.deadlines import Duration
from kmp_core.project import Environment, Project, ServiceName
from kmp_core.settings import Settings
from kmp_core.settings_sources import DEFAULT_ENVIRONMENT

__all__ = ["ServiceSettings"]


class ServiceSettings(Settings, prefix=""):
    """What every service has, under `KMP_…` and in the table `[settings]`; `project` stands at the top of `kmp.toml`."""

    project: Project | None = None
    """The tenant that the service works for. Needed as soon as a server is used; until then it is `local`."""

    service: ServiceName | None = None
    """The service's own name. Usually given in code: `Service("delays")`."""

    environment: Environment = Environment(DEFAULT_ENVIRONMENT)
    """Where the service runs; selects the overlay `[env.<environment>.settings]` of `kmp.toml`."""

    directory: Path = Path(".kmp")
    """Where embedded providers keep their files, in one directory per project. Relative to the working directory."""

    open_timeout: Duration = timedelta(seconds=30)
    """How long one resource may take to open before the start fails."""

    shutdown_delay: Duration = timedelta(0)
    """How long the service goes on taking work after readiness is off, so that load balancers notice first."""

    drain_timeout: Duration = timedelta(seconds=20)
    """How long work that was taken may take to finish at shutdown; what is not done by then is cancelled."""

    close_timeout: Duration = timedelta(seconds=10)
    """How long closing all resources may take together at shutdown; what hangs longer is left behind."""

    check_timeout: Duration = timedelta(seconds=2)
    """How long one health check may take before it counts as failed."""

    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The least severe level that is logged."""

    log_format: Literal["auto", "json", "console"] = Field("auto", examples=["json"])
    """`json` for machines, `console` for people; `auto` takes `console` on a terminal and `json` elsewhere."""
