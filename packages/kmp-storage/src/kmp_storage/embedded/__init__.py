"""Providers that need no server: one SQLite file (buckets: a directory) per project and capability."""
