"""Run a service: what it needs is opened on demand, and leaves in order when the service is told to stop."""

from kmp_core.service.program import run
from kmp_core.service.service import Replacement, Service

__all__ = ["Replacement", "Service", "run"]
