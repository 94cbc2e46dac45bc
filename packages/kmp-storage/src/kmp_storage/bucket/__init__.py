"""Buckets in object stores: `S3Bucket` keeps a project's objects in its own bucket of an S3 server."""

from kmp_storage.bucket.s3 import S3Bucket
from kmp_storage.settings.s3 import S3Settings

__all__ = ["S3Bucket", "S3Settings"]
