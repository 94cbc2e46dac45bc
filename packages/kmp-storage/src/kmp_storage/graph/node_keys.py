"""What a graph takes as the key of a node."""

from __future__ import annotations

from kmp_core.errors import InvalidInput
from kmp_storage.columns import encode_value
from kmp_storage.fields import FieldType

__all__ = ["check_node_key"]

_LONGEST_KEY = 512
_KEY = FieldType("key", "str", str, optional=False, required=True)


def check_node_key(value: object, field: str = "key", row: int | None = None) -> str:
    """The key of a node, where it can be one. Raises `InvalidInput`."""
    # Short ASCII needs no more than this; what is anything else is looked at in full.
    if type(value) is str and 0 < len(value) < 128 and value.isascii() and "\0" not in value:
        return value
    if value is None:
        raise InvalidInput(field, "must not be None", example='"JFK"', row=row)
    key: str = encode_value(_KEY, value, where=field, row=row)
    if not 1 <= len(key) <= _LONGEST_KEY:
        raise InvalidInput(field, f"must have 1 to {_LONGEST_KEY} characters", example='"JFK"', row=row)
    return str(key)
