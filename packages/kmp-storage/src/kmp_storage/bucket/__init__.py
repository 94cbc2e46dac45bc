"""Buckets in object stores: `S3Bucket` on an S3 server, `CloudBucket` (experimental) in Azure Blob Storage.

Of S3, obstore gets, asks for, deletes and signs. What is put, copied and listed, and the administrator's work, are our
own requests through httpx, because obstore 0.12 leaves the parts of a cancelled upload at the server, puts no condition
on an upload in parts, lists by whole path segments, and has no type for a refused list, key or large content.

Of Azure, obstore does everything but sign, and what it cannot do is `Unsupported`.
"""

from kmp_storage.bucket.cloud import CloudBucket
from kmp_storage.bucket.s3 import S3Bucket
from kmp_storage.settings.cloud import CloudSettings
from kmp_storage.settings.s3 import S3Settings

__all__ = ["CloudBucket", "CloudSettings", "S3Bucket", "S3Settings"]
