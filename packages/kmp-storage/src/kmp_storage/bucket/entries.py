"""What an object's headers say: its description as a `BucketEntry`, and our mark for what a server has no field for.

One item of user metadata, `kmp`, holds the version of the notation, a random name of this version of the object (an
S3 ETag is the same whenever the content is), the moment of the put, the content's SHA-256, the size of its parts, and
whether a content type was given. An object without it, put by another program, is read as it is.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from kmp_core.errors import InvalidInput
from kmp_storage.values import BucketEntry

__all__ = ["Mark", "describe", "entry_of", "items_of", "server_tag"]

_META = "x-amz-meta-"
_MARK = "kmp"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HEADER_BYTES = 2048
_MICROSECONDS = re.compile(r"[0-9]{1,17}")  # until the year 5138
_BYTES = re.compile(r"[0-9]{0,15}")
_CHECKSUM = re.compile(r"[0-9a-f]{64}")
# Everything that a header carries unharmed. A space may be trimmed or folded on the way, so it is encoded.
_PLAIN = "!\"#$&'()*+,/:;=?@[]^_`{|}~-."


@dataclass(frozen=True, slots=True)
class Mark:
    """What our puts note beside an object: `part_bytes` instead of a checksum where it went up in parts."""

    version: str
    modified: datetime
    checksum: str | None
    part_bytes: int | None
    typed: bool

    @classmethod
    def now(cls, *, checksum: str | None, part_bytes: int | None, typed: bool) -> Mark:
        return cls(uuid.uuid4().hex, datetime.now(UTC), checksum, part_bytes, typed)

    def anew(self) -> Mark:
        """The mark of a copy."""
        return replace(self, version=uuid.uuid4().hex, modified=datetime.now(UTC))

    def encode(self) -> str:
        microseconds = (self.modified - _EPOCH) // timedelta(microseconds=1)
        fields = ("1", self.version, microseconds, self.checksum or "", self.part_bytes or "", int(self.typed))
        return ";".join(map(str, fields))

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Mark | None:
        """The mark in the headers of an answer."""
        return cls.decode(headers.get(_META + _MARK))

    @classmethod
    def decode(cls, text: str | None) -> Mark | None:
        """The mark, or None for what is none of ours; a later version may have added fields."""
        fields = (text or "").split(";")
        if len(fields) < 6 or not _MICROSECONDS.fullmatch(fields[2]) or not _BYTES.fullmatch(fields[4]):
            return None
        modified = _EPOCH + timedelta(microseconds=int(fields[2]))
        # Anybody may write a mark: what is no checksum is not verified by it.
        checksum = fields[3] if _CHECKSUM.fullmatch(fields[3]) else None
        return cls(fields[1], modified, checksum, int(fields[4] or 0) or None, fields[5] == "1")


def items_of(mark: Mark, metadata: Mapping[str, str], key: str) -> dict[str, str]:
    """The user metadata to store: the mark and the caller's. Raises `InvalidInput` for more than a server takes."""
    items = {_MARK: mark.encode()} | {name: quote(value, safe=_PLAIN) for name, value in metadata.items()}
    if _MARK in metadata:
        raise InvalidInput("metadata", f"has the name {_MARK!r}, which is ours", example='{"origin": "JFK"}', key=key)
    if sum(len(name) + len(value) for name, value in items.items()) > _HEADER_BYTES:
        problem = f"takes more than {_HEADER_BYTES} bytes as headers"
        raise InvalidInput("metadata", problem, example='{"origin": "JFK"}', key=key)
    return items


def describe(mark: Mark, content_type: str | None, metadata: Mapping[str, str], key: str) -> dict[str, str]:
    """The headers that describe an object to S3."""
    headers = {_META + name: value for name, value in items_of(mark, metadata, key).items()}
    return headers if content_type is None else headers | {"content-type": content_type}


def entry_of(
    key: str, *, size: int, etag: str, modified: datetime, content_type: str | None, metadata: Mapping[str, str]
) -> tuple[BucketEntry, Mark | None]:
    """The entry and the mark, from what a server says; `metadata` is without its prefix."""
    mark = Mark.decode(metadata.get(_MARK))
    tag = etag.strip('"')
    if mark is None:
        return BucketEntry(key, size, tag, modified, content_type, None, dict(metadata)), None
    plain = {name: unquote(value) for name, value in metadata.items() if name != _MARK}
    kind = content_type if mark.typed else None
    return BucketEntry(key, size, f"{tag}.{mark.version}", mark.modified, kind, mark.checksum, plain), mark


def server_tag(etag: str) -> str:
    """The server's own ETag, as a header takes it."""
    return f'"{etag.partition(".")[0]}"'
