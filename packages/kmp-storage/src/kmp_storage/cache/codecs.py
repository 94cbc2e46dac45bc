"""How a model becomes the bytes of a cache: JSON, or MessagePack, which is smaller. Never pickle, which runs code.

Bytes say what they are, so that views of either kind read both, and a service may change its mind while old and new
replicas run side by side. JSON is as it is. MessagePack comes after two bytes: 0xC1, with which neither JSON nor
MessagePack begins, and the version of what follows. What cannot be read counts as missing.
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel
from pydantic_core import to_json

from kmp_core.errors import InvalidInput, MissingExtra
from kmp_core.plugins import extra

__all__ = ["Codec", "check_codec", "decode", "encode"]

Codec = Literal["json", "msgpack"]

B = TypeVar("B", bound=BaseModel)

_MARKED = b"\xc1"
_MSGPACK = _MARKED + b"\x01"


def check_codec(codec: object) -> None:
    """Raise `InvalidInput` for what is no codec, and `MissingExtra` where its library is not installed."""
    if codec not in get_args(Codec):
        raise InvalidInput("codec", f"must be one of {', '.join(get_args(Codec))}", example='codec="msgpack"')
    if codec == "msgpack":
        _library()


def encode(value: BaseModel, codec: Codec) -> bytes:
    """The model's bytes. Raises `InvalidInput` for what the codec cannot carry."""
    try:
        if codec == "json":
            text = value.__pydantic_serializer__.to_json(value, by_alias=True, round_trip=True)
            # pydantic writes null for NaN and infinity, which a float does not take back.
            return text if b"null" not in text else to_json(_plain(value), inf_nan_mode="constants")
        # What JSON would say, so that models mean the same in both.
        return _MSGPACK + bytes(_library().msgpack.encode(_plain(value)))
    except (ValueError, OverflowError, RecursionError) as error:
        problem = f"cannot be written as {codec}: {error}"
        raise InvalidInput("value", problem, example=f"{type(value).__name__}(...) of plain values") from error


def decode(content: bytes, model: type[B]) -> B | None:
    """The model, whichever codec wrote it; None where it cannot be read or no longer fits."""
    try:
        if content.startswith(_MSGPACK):
            # Through JSON, whose rules a strict model keeps to: a time is text there.
            content = to_json(_unpack(content[len(_MSGPACK) :]), inf_nan_mode="constants")
        elif content.startswith(_MARKED):
            return None  # of a later version
        return model.__pydantic_validator__.validate_json(content)  # type: ignore[no-any-return]
    except (MissingExtra, ValueError, RecursionError):
        return None


def _plain(value: BaseModel) -> Any:
    return value.__pydantic_serializer__.to_python(value, mode="json", by_alias=True, round_trip=True)


def _unpack(content: bytes) -> Any:
    msgspec = _library()
    try:
        return msgspec.msgpack.decode(content)
    except msgspec.DecodeError as error:
        raise ValueError("it is no MessagePack") from error


def _library() -> Any:
    with extra("msgspec", install="kmp-storage[msgpack]"):
        import msgspec

    return msgspec
