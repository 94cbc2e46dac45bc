"""What is stored under a series' name, and whether a class still fits it.

A class that does not fit is refused with advice before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kmp_core.errors import Conflict
from kmp_storage.columns import kept_kind
from kmp_storage.series.codec import Codec

__all__ = ["Series", "check", "declared_fields", "misfit", "quoted"]


@dataclass(frozen=True, slots=True)
class Series:
    """What the catalogue says of a series."""

    fields: dict[str, tuple[str, bool]]
    tags: tuple[str, ...]
    unique: tuple[str, ...]
    retention: int | None


def quoted(name: str) -> str:
    """A name for SQL. It was checked against an allow-list when its class was defined."""
    return f'"{name}"'


def check(codec: Codec[Any], stored: Series) -> None:
    """Raise `Conflict`, with advice, where the class cannot share the table."""
    if set(codec.unique) != set(stored.unique):
        raise misfit(codec, f"is stored with unique={stored.unique} and declared with unique={codec.unique}")
    declared = declared_fields(codec)
    for name, (kind, missing) in declared.items():
        if name not in stored.fields:
            if not missing:
                advice = f"give it a default, or make it '{name}: ... | None'"
                raise misfit(codec, f"has rows without the new field {name!r}", advice)
        elif stored.fields[name][0] != kind:
            raise misfit(codec, f"keeps {name!r} as {stored.fields[name][0]}, and the class declares {kind}")
        elif stored.fields[name][1] and not missing:
            raise misfit(codec, f"may have rows without {name!r}", "give it a default, or allow None")
    for name, (_, missing) in stored.fields.items():
        if name not in declared and not missing:
            advice = f"keep it, or first release a version in which it is '{name}: ... | None'"
            raise misfit(codec, f"needs the field {name!r}, which the class lacks", advice)


def declared_fields(codec: Codec[Any]) -> dict[str, tuple[str, bool]]:
    """Kind, and whether a row may lack it, of each field of the class."""
    return {f.name: (kept_kind(f), f.optional or not f.required) for f in codec.fields.values()}


def misfit(codec: Codec[Any], problem: str, advice: str | None = None) -> Conflict:
    """The error for a class that cannot share the table, with what to do."""
    advice = advice or "give the new shape a series of its own"
    return Conflict(
        f"{codec.model.__name__} does not fit what is stored: series {codec.series!r} {problem}; {advice}",
        key=codec.series,
    )
