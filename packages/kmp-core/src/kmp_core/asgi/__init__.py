"""Middleware for any ASGI framework: who calls, until when, as part of which trace, and no more than can be served."""

from kmp_core.asgi.authentication import HEALTH_PATHS, Authentication, Inbound, Require, require
from kmp_core.asgi.overload import Overload, OverloadSettings

__all__ = ["HEALTH_PATHS", "Authentication", "Inbound", "Overload", "OverloadSettings", "Require", "require"]
