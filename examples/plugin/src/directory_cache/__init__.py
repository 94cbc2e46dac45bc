"""A cache in plain files, for KMP services: `KMP_STORAGE_CACHE_URL=directory:`."""

from directory_cache.provider import DirectoryCache

__all__ = ["DirectoryCache"]
