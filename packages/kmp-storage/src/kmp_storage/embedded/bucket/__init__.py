"""A bucket that needs no server."""

from kmp_storage.embedded.bucket.provider import FileBucket
from kmp_storage.embedded.bucket.settings import BucketSettings

__all__ = ["BucketSettings", "FileBucket"]
