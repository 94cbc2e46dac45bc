"""Sign what lets its bearer use one blob, or one container, until it expires: a service SAS of Azure Blob Storage.

Source of the rules: Microsoft, "Create a service SAS", version 2020-12-06 and later. obstore signs too, but signs the
name as it is encoded in a URL, so that Azure refuses all names with anything but letters, digits and `-_.~/`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from datetime import UTC, datetime, timedelta
from typing import Literal
from urllib.parse import urlencode

__all__ = ["blob_token"]

_VERSION = "2023-11-03"
_UNUSED_BEFORE = ("", "", "")  # stored policy, address, protocol
_UNUSED_AFTER = ("",) * 7  # snapshot, encryption scope, and the headers of the answer


def blob_token(
    account_key: str, account: str, path: str, *, rights: str, span: timedelta, resource: Literal["b", "c"] = "b"
) -> str:
    """The query of a URL for the blob (`b`) or container (`c`) at this path, as its name is, not as it is encoded."""
    end = (datetime.now(UTC) + span).strftime("%Y-%m-%dT%H:%M:%SZ")
    fields = (rights, "", end, f"/blob/{account}/{path}", *_UNUSED_BEFORE, _VERSION, resource, *_UNUSED_AFTER)
    digest = hmac.new(base64.b64decode(account_key), "\n".join(fields).encode(), hashlib.sha256).digest()
    signature = base64.b64encode(digest).decode()
    return urlencode({"sv": _VERSION, "sr": resource, "sp": rights, "se": end, "sig": signature})
