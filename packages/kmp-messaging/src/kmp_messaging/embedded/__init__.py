"""The bus that needs no server: a file that the processes of one machine share, or memory for tests."""

from kmp_messaging.embedded.bus import SqliteBus

__all__ = ["SqliteBus"]
