"""What a provider is told about the service that it is opened for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

from kmp_core.capability import Capability
from kmp_core.project import Environment, Project, ServiceName
from kmp_core.resource import Resource

__all__ = ["Context", "ProviderFactory"]

C = TypeVar("C", bound=Resource)


class Opener(Protocol):
    """Gives an opened capability: `Service.get`."""

    async def __call__(self, capability: Capability[C], /) -> C: ...


@dataclass(frozen=True, slots=True)
class Context:
    """Whom a provider works for, where embedded data lives, and how it gets the capabilities it builds on.

    `get` opens another capability first; what is opened first is closed last. `directory` is the project's own
    (`.kmp/<project>`), and need not exist yet.
    """

    project: Project
    service: ServiceName
    environment: Environment
    directory: Path
    get: Opener


class ProviderFactory(Protocol):
    """What an entry point of a capability's group names: usually the provider's class."""

    @classmethod
    def from_url(cls, url: str, *, context: Context) -> Self:
        """Make a provider, not yet opened. Raises `ConfigurationError` for a URL or settings that are wrong."""
        ...
