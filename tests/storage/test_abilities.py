"""The committed table of abilities is what our providers declare, so that one that gets lost fails the build.

Write it anew with `python tests/storage/test_abilities.py`.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from kmp_core.context import Context
from kmp_core.project import Environment, Project, ServiceName
from kmp_core.resource import Provider

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "abilities.md"
HEAD = """\
# Abilities

What each provider can do beyond the calls of its capability. A provider declares its abilities in the attribute
`abilities`; the capability's contract suite tests each one that is declared, and where an ability is a call, demands
`Unsupported` from a provider that does not declare it. This table is written from instances of the installed providers,
one for each scheme, and a test compares it.

"""
MEANING = {
    "batches": "hands a handler several events at once (`subscribe_batch`)",
    "bounded": "keeps to a limit of size, and drops what was used least",
    "dead_letters": "keeps what was given up, with its cause",
    "durable": "what was written survives the process, killed or not",
    "early_refresh": "one caller loads a value anew shortly before its end, while the others get the old one",
    "expiry": "forgets an object after the time that its put named",
    "groups": "several groups consume the same events, each at its own pace",
    "lag": "tells how far a group is behind",
    "retention": "drops measurements that are older than their series keeps them",
    "shared": "several processes use the same data at the same time",
    "sign": "gives URLs that let their bearer get or put one object",
    "unique": "ignores the same measurement again, and refuses another one under its key",
    "zones": "summarises by whole days, weeks and months of an IANA time zone",
}


def providers() -> dict[tuple[str, type[Provider]], list[str]]:
    """The schemes of our distributions' providers, by capability and class."""
    found: dict[tuple[str, type[Provider]], list[str]] = {}
    for group in metadata.entry_points().groups:
        if not group.startswith("kmp.") or group == "kmp.settings":
            continue
        for point in metadata.entry_points(group=group):
            if point.dist is not None and point.dist.name.startswith("kmp-"):
                found.setdefault((group.removeprefix("kmp."), point.load()), []).append(point.name)
    return found


async def _nothing(capability: Any) -> Any:
    raise AssertionError("nothing is opened here")


def _url(capability: str, scheme: str, provider: type[Provider]) -> str:
    """An address that the provider accepts; nothing is opened."""
    if capability == "core.secrets":
        return f"{scheme}:///tmp" if scheme == "file" else f"{scheme}:"
    database = "/acme" if capability == "storage.timeseries" else ""
    return f"{scheme}:" if provider.embedded else f"{scheme}://acme:a-secret-of-a-test@127.0.0.1{database}"


def instances() -> list[tuple[str, str, Provider]]:
    """A provider for each scheme, not opened, with its capability."""
    home = Path("/tmp")
    context = Context(Project("acme"), ServiceName("delays"), Environment("test"), home, _nothing)
    found = []
    for (capability, provider), schemes in providers().items():
        for scheme in schemes:
            url = _url(capability, scheme, provider)
            found.append((capability, scheme, provider.from_url(url, context=context)))  # type: ignore[attr-defined]
    return sorted(found, key=lambda row: (row[0], type(row[2]).__name__, row[1]))


def table() -> str:
    lines = ["| capability | scheme | provider | abilities |", "|---|---|---|---|"]
    for capability, scheme, provider in instances():
        abilities = ", ".join(sorted(provider.abilities)) or "none"
        lines.append(f"| `{capability}` | `{scheme}:` | `{type(provider).__name__}` | {abilities} |")
    declared = sorted({ability for _, _, provider in instances() for ability in provider.abilities})
    assert set(declared) <= set(MEANING), "an ability without a meaning: describe it here"
    lines += ["", "| ability | meaning |", "|---|---|"]
    lines += [f"| {ability} | {MEANING[ability]} |" for ability in declared]
    return HEAD + "\n".join(lines) + "\n"


def test_the_committed_table_is_what_the_providers_declare() -> None:
    assert TABLE.read_text() == table(), "write it anew: python tests/storage/test_abilities.py"


def test_nothing_in_memory_is_durable_or_shared() -> None:
    ours = [(scheme, provider) for capability, scheme, provider in instances() if capability != "core.secrets"]
    assert len(ours) >= 10
    for scheme, provider in ours:
        assert ("shared" in provider.abilities) is (scheme != "memory"), provider
        assert scheme != "memory" or "durable" not in provider.abilities, provider


def test_every_capability_of_ours_has_a_provider() -> None:
    capabilities = {capability for capability, _ in providers()}
    assert capabilities >= {
        "storage.timeseries",
        "storage.graph",
        "storage.cache",
        "storage.bucket",
        "messaging.bus",
        "core.secrets",
    }


if __name__ == "__main__":
    TABLE.write_text(table())
