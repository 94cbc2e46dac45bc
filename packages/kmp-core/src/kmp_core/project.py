"""Who owns what: validated names for projects, services and environments, and what each backend calls a project.

Each name is a `str` that was checked when it was made, so a function that takes a `Project` need not check again.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from kmp_core.errors import InvalidInput

__all__ = ["Backend", "Environment", "Project", "ServiceName", "backend_name"]

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?", re.ASCII)


class _Label(str):
    """A DNS-1123 label (RFC 1123, section 2.1, in lower case) of bounded length."""

    __slots__ = ()
    field: ClassVar[str]
    shortest: ClassVar[int] = 1
    longest: ClassVar[int]
    example: ClassVar[str]

    def __new__(cls, value: str) -> Self:
        if isinstance(value, cls):
            return value
        problem = cls._problem(value)
        if problem is not None:
            raise InvalidInput(cls.field, problem, example=f'"{cls.example}"')
        return super().__new__(cls, value)

    @classmethod
    def _problem(cls, value: object) -> str | None:
        if not isinstance(value, str):
            return f"must be text, not {type(value).__name__}"
        if not cls.shortest <= len(value) <= cls.longest:
            return f"must have {cls.shortest} to {cls.longest} characters, not {len(value)}"
        foreign = next((c for c in value if not c.isascii()), None)
        if foreign is not None:
            name = unicodedata.name(foreign, "no name")
            return f"contains U+{ord(foreign):04X} ({name}), which may look like an ASCII letter and is not one"
        if _LABEL.fullmatch(value) is None:
            return "may hold only a-z, 0-9 and '-', and must begin and end with a letter or digit"
        return None

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(
            cls._validate, core_schema.str_schema(), serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def _validate(cls, value: str) -> Self:
        problem = cls._problem(value)
        if problem is not None:
            raise ValueError(f"{problem}; for example {cls.example}")
        return cls(value)


class Project(_Label):
    """The tenant: everything that belongs to one project is kept apart from every other's.

    A DNS-1123 label of 2 to 40 characters, such as `skyline`. Raises `InvalidInput` for anything else, look-alike
    letters included.
    """

    __slots__ = ()
    field = "project"
    shortest = 2
    longest = 40
    example = "skyline"


class ServiceName(_Label):
    """One deployable of a project: a DNS-1123 label of 1 to 63 characters, such as `departures`."""

    __slots__ = ()
    field = "service"
    longest = 63
    example = "departures"


class Environment(_Label):
    """Where the service runs: `dev`, `test`, `staging`, `prod` or the team's own word; selects settings overlays."""

    __slots__ = ()
    field = "environment"
    longest = 40
    example = "staging"


Backend = Literal["postgres", "neo4j", "redis", "kafka", "bucket", "kubernetes", "file"]


_ESCAPE, _END = "kmp--", "--kmp"


@dataclass(frozen=True, slots=True)
class _Rule:
    """Which projects a backend cannot know by their own name."""

    names: frozenset[str] = frozenset()
    prefixes: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()
    shortest: int = 2
    letter_first: bool = False

    def refuses(self, project: str) -> bool:
        return (
            project in self.names
            or project.startswith((_ESCAPE, *self.prefixes))
            or project.endswith(self.suffixes)
            or len(project) < self.shortest
            or (self.letter_first and project[0].isdigit())
        )


_RULES: dict[Backend, _Rule] = {
    # PostgreSQL, "Identifiers and Key Words", CREATE ROLE, CREATE SCHEMA: "pg_" is reserved, "public" and "none" are
    # refused as roles even in quotes; the others exist in every cluster or every TimescaleDB.
    "postgres": _Rule(
        names=frozenset(("postgres", "template0", "template1", "public", "none", "information-schema", "timescaledb")),
        prefixes=("pg-", "timescaledb-"),
        letter_first=True,
    ),
    # Neo4j, "Naming rules for databases"; a first digit is legal from 2025.01 only. Dots delimit composite databases.
    "neo4j": _Rule(names=frozenset(("neo4j",)), prefixes=("system",), shortest=3, letter_first=True),
    # Redis, "ACL": the user "default" always exists.
    "redis": _Rule(names=frozenset(("default",))),
    # Kafka, `Topic.LEGAL_CHARS`. Topics that differ in '.' and '_' alone collide in metrics; a project has neither.
    "kafka": _Rule(),
    # Amazon S3, "General purpose bucket naming rules".
    "bucket": _Rule(
        prefixes=("xn--", "sthree-", "amzn-s3-demo-"),
        suffixes=("-s3alias", "--ol-s3", "--x-s3", "--table-s3"),
        shortest=3,
    ),
    # Kubernetes, "Namespaces": "kube-" is reserved, and what is in "default" belongs to nobody in particular.
    "kubernetes": _Rule(names=frozenset(("default",)), prefixes=("kube-",)),
    "file": _Rule(),
}


def backend_name(project: Project, backend: Backend) -> str:
    """What the backend calls the project: the same name every time, and never one name for two projects.

    A project keeps its own name where the backend allows it. Where not, the name is `kmp--<project>--kmp`, and a
    project whose own name begins with `kmp--` gets that form too, so that no two meet. On PostgreSQL each `-` is `_`,
    which no project has.

    | backend | names what | form |
    |---|---|---|
    | postgres | database, schema, role | `a-z 0-9 _`, at most 50 bytes; key words (`user`) only in quotes |
    | neo4j | database | 3 to 50 characters of `a-z 0-9 -`, a letter first |
    | redis, kafka | user, and prefix before a separator | `a-z 0-9 -` |
    | bucket | bucket | 3 to 50 characters of `a-z 0-9 -` |
    | kubernetes | namespace | RFC 1123 label |
    | file | directory | the project |
    """
    if backend not in get_args(Backend):
        raise InvalidInput("backend", "is not known", example=", ".join(get_args(Backend)))
    name = f"{_ESCAPE}{project}{_END}" if _RULES[backend].refuses(project) else str(project)
    return name.replace("-", "_") if backend == "postgres" else name
