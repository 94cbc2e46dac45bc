"""What all caches share: the typed view, what they ask of their arguments, how models are kept, one load per key."""

from kmp_storage.cache.typed import TypedCache, check_key, check_value, time_to_live

__all__ = ["TypedCache", "check_key", "check_value", "time_to_live"]
