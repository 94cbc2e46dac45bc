"""Typed settings: declare a class, and its fields can be set by arguments, variables, files and `kmp.toml` alike."""

from kmp_core.settings.base import Settings, load_all
from kmp_core.settings.files import ExistingFile
from kmp_core.settings.url import ConnectionUrl

__all__ = ["ConnectionUrl", "ExistingFile", "Settings", "load_all"]
