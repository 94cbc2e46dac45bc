"""Who owns what: validated names for projects, services and environments, and what each backend calls a project.

Each name is a `str` that was checked when it was made, so a function that takes a `Project` need not check again.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
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
        if type(value) is cls:
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
        def validate(value: str) -> Self:
            problem = cls._problem(value)
            if problem is not None:
                raise ValueError(f"{problem}; for example {cls.example}")
            return cls(value)

        return core_schema.no_info_after_validator_function(
            validate, core_schema.str_schema(), serialization=core_schema.to_string_ser_schema()
        )


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


def backend_name(project: Project, backend: Backend) -> str:
    """What the backend calls the project: the same name every time, and never one name for two projects.

    A project's own name is used as far as the backend's rules allow it. Where they do not, it gets a prefix, in
    a form that no other project's name can take.

    | backend | form | rule |
    |---|---|---|
    | postgres | database, schema or role: `-` becomes `_` | 63 bytes, PostgreSQL "Identifiers and Key Words" |
    | neo4j | database: 3 to 63 characters, a letter first, `a-z 0-9 - .` | Neo4j "Database names" |
    | redis, kafka | prefix, to be followed by a separator | none beyond ours |
    | bucket | 3 to 63 characters | S3 "Bucket naming rules" |
    | kubernetes, file | the project | RFC 1123 label |
    """
    if backend not in get_args(Backend):
        raise InvalidInput("backend", "is not known", example=", ".join(get_args(Backend)))
    if backend == "postgres":
        # '-' is the only character that changes, and a project cannot contain '_': the map is one to one. A leading
        # digit or `pg_` would need quoting or be reserved, so those move behind a prefix no project can produce.
        name = project.replace("-", "_")
        return f"kmp__{name}" if name[0].isdigit() or name.startswith("pg_") else name
    if backend == "neo4j":
        # "neo4j" and "system" exist already, a leading digit and "system…" are refused, two characters are too few.
        plain = len(project) >= 3 and project[0].isalpha() and not project.startswith(("system", "neo4j", "kmp."))
        return str(project) if plain else f"kmp.{project}"
    if backend == "bucket":
        # A hash of a name that is not legal; "xn--", "sthree-", "-s3alias" and friends are reserved by S3.
        reserved = project.startswith(("xn--", "sthree-", "amzn-", "kmp--")) or project.endswith(
            ("-s3alias", "--ol-s3", "--x-s3", "--table-s3")
        )
        if len(project) >= 3 and not reserved:
            return str(project)
        digest = base64.b32encode(hashlib.sha256(project.encode()).digest())[:16].decode().lower()
        return f"kmp--{digest}"
    return str(project)
