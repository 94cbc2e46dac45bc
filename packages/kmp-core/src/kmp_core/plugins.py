"""Find the provider that answers to a URL, and say what to install where none does.

A provider is announced by an entry point whose group is the capability's and whose name is the URL's scheme:

    [project.entry-points."kmp.storage.timeseries"]
    timescale = "kmp_storage.timescale:TimescaleStore"

What a program registers itself comes first; then the installed distributions' entry points are read, once a process,
and only the plugin that was named is imported.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from kmp_core.capability import CapabilitySpec, spec_of
from kmp_core.context import ProviderFactory
from kmp_core.errors import Fault, MissingExtra, PluginError, UnknownScheme
from kmp_core.importing import on_one_screen

if TYPE_CHECKING:
    from importlib import metadata

__all__ = ["extra", "find", "forget", "installed", "register", "scheme_of"]

_registered: dict[tuple[str, str], Any] = {}

_INSTALLATIONS: Mapping[str, Mapping[str, str]] = {
    "storage.timeseries": {
        "timescale": "kmp-storage[timescale]",
        "postgres": "kmp-storage[timescale]",
        "postgresql": "kmp-storage[timescale]",
        "sqlite": "kmp-storage",
        "memory": "kmp-storage",
    },
    "storage.graph": {
        "neo4j": "kmp-storage[neo4j]",
        "neo4j+s": "kmp-storage[neo4j]",
        "bolt": "kmp-storage[neo4j]",
        "sqlite": "kmp-storage",
        "memory": "kmp-storage",
    },
    "storage.cache": {
        "redis": "kmp-storage[redis]",
        "rediss": "kmp-storage[redis]",
        "redis+cluster": "kmp-storage[redis]",
        "rediss+cluster": "kmp-storage[redis]",
        "sqlite": "kmp-storage",
        "memory": "kmp-storage",
    },
    "storage.bucket": {
        "s3": "kmp-storage[buckets]",
        "gs": "kmp-storage[buckets]",
        "az": "kmp-storage[buckets]",
        "file": "kmp-storage",
        "memory": "kmp-storage",
    },
    "messaging.bus": {
        "kafka": "kmp-messaging[kafka]",
        "redis": "kmp-messaging[redis]",
        "rediss": "kmp-messaging[redis]",
        "sqlite": "kmp-messaging",
        "memory": "kmp-messaging",
    },
}


def register(capability: Callable[..., Any], scheme: str, provider: Any) -> None:
    """Have `provider` answer to `scheme` in this process, before any installed plugin of that name.

    >>> plugins.register(Cache, "mine", MyCache)  # doctest: +SKIP
    """
    _registered[spec_of(capability).name, scheme] = provider


def find(spec: CapabilitySpec, url: str) -> ProviderFactory:
    """The class that answers to the URL's scheme, imported now if it was not.

    Raises `UnknownScheme`, and `PluginError` or `MissingExtra` where the plugin cannot be loaded. The URL itself is
    never part of an error: it may hold a password.
    """
    scheme = scheme_of(spec, url)
    provider = _registered.get((spec.name, scheme))
    if provider is None:
        candidates = _scan().get(spec.group, {}).get(scheme, ())
        if not candidates:
            raise _unknown(spec, scheme)
        provider = _load(spec, scheme, candidates)
    return cast(ProviderFactory, provider)


def scheme_of(spec: CapabilitySpec, url: str) -> str:
    """The URL's scheme in lower case. Raises `UnknownScheme` for a text that has none."""
    scheme, colon, _ = url.partition(":")
    if not colon or not scheme or not all(c.isascii() and (c.isalnum() or c in "+-.") for c in scheme):
        raise UnknownScheme(
            Fault(spec.variable, f"is not a URL with a scheme (installed: {_listing(spec)})", example=spec.default)
        )
    return scheme.lower()


def installed(spec: CapabilitySpec) -> list[str]:
    """The schemes that have a provider in this process, in order."""
    own = {scheme for name, scheme in _registered if name == spec.name}
    return sorted(own | _scan().get(spec.group, {}).keys())


def forget() -> None:
    """Drop what was registered and what was scanned, for tests and after an installation in a running process."""
    _registered.clear()
    _scan.cache_clear()


@contextmanager
def extra(module: str, *, install: str) -> Iterator[None]:
    """Import a driver that comes with an extra, so that its absence says what to install.

        with extra("asyncpg", install="kmp-storage[timescale]"):
            import asyncpg

    Raises `MissingExtra` when `module` is not installed. Any other import error, one from inside the driver too,
    passes through.
    """
    try:
        yield
    except MissingExtra as error:
        # A module of ours below says so in its own extra's name; what the user asked for is this one's.
        if error.name != module:
            raise
        raise on_one_screen(MissingExtra(module, install=install)) from error
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise on_one_screen(MissingExtra(module, install=install)) from error


@functools.cache
def _scan() -> Mapping[str, Mapping[str, tuple[metadata.EntryPoint, ...]]]:
    from importlib import metadata

    found: dict[str, dict[str, tuple[metadata.EntryPoint, ...]]] = {}
    seen: set[str] = set()
    for distribution in metadata.distributions():
        points = [point for point in distribution.entry_points if point.group.startswith("kmp.")]
        # A distribution may lie on the path twice; the first one is the one that is imported.
        if not points or distribution.name in seen:
            continue
        seen.add(distribution.name)
        for point in points:
            names = found.setdefault(point.group, {})
            names[point.name.lower()] = (*names.get(point.name.lower(), ()), point)
    return found


def _load(spec: CapabilitySpec, scheme: str, candidates: tuple[metadata.EntryPoint, ...]) -> Any:
    origins = sorted({_origin(point) for point in candidates})
    if len({(point.value, _origin(point)) for point in candidates}) > 1:
        raise PluginError(
            Fault(
                f"{spec.group}:{scheme}",
                f"is announced more than once, by {' and by '.join(origins)}",
                example="uninstall one of them, or register the one you want: plugins.register(...)",
            ),
            heading="Two plugins have the same name",
        )
    point = candidates[0]
    where = f"plugin '{scheme}' ({point.value}) of distribution {_origin(point)}"
    try:
        provider = point.load()
    except MissingExtra:
        raise
    except Exception as error:
        raise PluginError(
            Fault(where, f"failed to load: {type(error).__name__}: {error}"),
            heading=f"A provider of {spec.name} cannot be used",
        ) from error
    if not callable(getattr(provider, "from_url", None)):
        raise PluginError(
            Fault(where, "has no from_url(url, *, context)", example="a class that derives from kmp_core.Provider"),
            heading=f"A provider of {spec.name} cannot be used",
        )
    return provider


def _origin(point: metadata.EntryPoint) -> str:
    return "unknown" if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _unknown(spec: CapabilitySpec, scheme: str) -> UnknownScheme:
    import difflib

    known = installed(spec)
    problem = f"no installed provider answers to the scheme '{scheme}' (installed: {_listing(spec)})"
    installation = _INSTALLATIONS.get(spec.name, {}).get(scheme)
    near = difflib.get_close_matches(scheme, {*known, *_INSTALLATIONS.get(spec.name, ())}, n=1)
    if installation is not None:
        problem += f"; pip install '{installation}' adds it"
    elif near:
        problem += f"; did you mean '{near[0]}'?"
    return UnknownScheme(Fault(spec.variable, problem, example=spec.default))


def _listing(spec: CapabilitySpec) -> str:
    return ", ".join(installed(spec)) or "none"
