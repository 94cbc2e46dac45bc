"""What a service can ask for: a protocol with a name, to which providers answer by the scheme of its URL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kmp_core.errors import InvalidInput
from kmp_core.resource import Resource

__all__ = ["Capability", "CapabilitySpec", "capability", "declared", "spec_of"]

C = TypeVar("C", bound=Resource)
P = TypeVar("P", bound=type)

Capability = Callable[..., C]
"""The type of an argument that takes a capability's protocol: `async def get(self, capability: Capability[C]) -> C`."""


@dataclass(frozen=True, slots=True)
class CapabilitySpec:
    """How a capability is configured and found.

    `name` is the path that gives both names: `storage.timeseries` is configured by `KMP_STORAGE_TIMESERIES_URL` and
    its providers are entry points of the group `kmp.storage.timeseries`. `default` is the URL of the embedded
    provider, used where nothing is configured.
    """

    name: str
    default: str

    @property
    def group(self) -> str:
        return f"kmp.{self.name}"

    @property
    def variable(self) -> str:
        return f"KMP_{self.name.replace('.', '_').upper()}_URL"


_specs: dict[object, CapabilitySpec] = {}


def capability(name: str, *, default: str) -> Callable[[P], P]:
    """Declare a protocol to be a capability, so that `Service.get` can provide it."""

    def declare(protocol: P) -> P:
        _specs[protocol] = CapabilitySpec(name, default)
        return protocol

    return declare


def spec_of(protocol: object) -> CapabilitySpec:
    """How the capability is configured. Raises `InvalidInput` for a class that is none."""
    spec = _specs.get(protocol)
    if spec is None:
        known = ", ".join(sorted(getattr(p, "__name__", str(p)) for p in _specs)) or "none is imported"
        name = getattr(protocol, "__name__", repr(protocol))
        raise InvalidInput("capability", f"{name} is not a capability (known: {known})", example="TimeSeriesStore")
    return spec


def declared() -> list[CapabilitySpec]:
    """Every capability whose module is imported, in the order of declaration."""
    return list(dict.fromkeys(_specs.values()))
