"""SQLite for embedded providers: durable, shared by several processes, and never in the way of the event loop."""

from kmp_core.sqlite.database import Database, Synchronous, Work, database_path
from kmp_core.sqlite.files import local_path, make_private_directory

__all__ = ["Database", "Synchronous", "Work", "database_path", "local_path", "make_private_directory"]
