"""Checks of arguments that all stores share."""

from __future__ import annotations

from kmp_core.errors import InvalidInput

__all__ = ["whole_number"]


def whole_number(field: str, value: object, *, least: int, most: int = 2**63 - 1) -> int:
    """The value, where it is an integer in range. Raises `InvalidInput`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidInput(field, f"must be a whole number, not {type(value).__name__}", example=str(least + 1))
    if not least <= value <= most:
        raise InvalidInput(field, f"must lie between {least} and {most}", example=str(least + 1))
    return value
