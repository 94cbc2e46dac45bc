"""Where real servers are: an administrator's URL of each, and what the services of each project are told of them.

`--servers FILE` names a JSON file. On Neo4j Community every user is an administrator, so each project has an instance
of its own:

    {"timeseries": "timescale://postgres:…@127.0.0.1:5432/postgres?sslmode=disable",
     "graph": {"skyline": "bolt://neo4j:…@127.0.0.1:7687", "harbour": "bolt://neo4j:…@127.0.0.1:7688"},
     "cache": "redis://default:…@127.0.0.1:6379",
     "bucket": "s3+http://admin:…@127.0.0.1:7070"}
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from kmp_core.errors import ConfigurationError, Fault
from kmp_core.secrets import Secret
from kmp_core.settings.url import ConnectionUrl

__all__ = ["PROJECTS", "Administrators", "Places"]

PROJECTS = ("skyline", "harbour")


class Graphs(BaseModel):
    """An instance for each project."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    skyline: ConnectionUrl
    harbour: ConnectionUrl


class Administrators(BaseModel):
    """Who may make and remove projects, as the URL of each server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    timeseries: ConnectionUrl
    graph: Graphs
    cache: ConnectionUrl
    bucket: ConnectionUrl

    @classmethod
    def read(cls, file: Path) -> Administrators:
        """Read the file. Raises `ConfigurationError` that names what is wrong in it, and no value."""
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            problem = f"{file} cannot be read: {os.strerror(error.errno or 0)}"
            faults = [Fault("--servers", problem, example="--servers servers.json")]
        except ValidationError as error:
            faults = [
                Fault(f"--servers, {'.'.join(map(str, fault['loc'])) or 'the file'}", fault["msg"], example=_EXAMPLE)
                for fault in error.errors(include_url=False, include_input=False, include_context=False)
            ]
        raise ConfigurationError(*faults, heading="The servers cannot be used")


_EXAMPLE = '{"timeseries": "timescale://postgres:…@127.0.0.1:5432/postgres", "graph": {"skyline": …'


@dataclass(frozen=True, slots=True)
class Places:
    """What the services of each project are told of the servers: variables, which hold the project's credentials."""

    of: Mapping[str, Mapping[str, Secret]]
    foreign_graph: str
    """Where skyline's graph is, without credentials: the one server that harbour has not."""

    def url(self, project: str, capability: str) -> str:
        """Where a capability of a project is, with the project's credentials."""
        return self.of[project][f"KMP_STORAGE_{capability}_URL"].reveal()
