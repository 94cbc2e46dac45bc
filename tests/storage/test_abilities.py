"""The committed table of abilities is what our providers declare, so that one that gets lost fails the build.

Write it anew with `python tests/storage/test_abilities.py`.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

from kmp_core.resource import Provider

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "abilities.md"
HEAD = """\
# Abilities

What each provider can do beyond the calls of its capability. A provider declares its abilities in the class variable
`abilities`; the capability's contract suite tests each one that is declared, and where an ability is a call, demands
`Unsupported` from a provider that does not declare it. This table is written from the installed providers, and a test
compares it.

"""
MEANING = {
    "batches": "hands a handler several events at once (`subscribe_batch`)",
    "bounded": "keeps to a limit of size, and drops what was used least",
    "dead_letters": "keeps what was given up, with its cause",
    "durable": "what was written survives the process, killed or not (not with `memory:`)",
    "early_refresh": "one caller loads a value anew shortly before its end, while the others get the old one",
    "groups": "several groups consume the same events, each at its own pace",
    "lag": "tells how far a group is behind",
    "retention": "drops measurements that are older than their series keeps them",
    "shared": "several processes use the same data at the same time (not with `memory:`)",
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


def table() -> str:
    lines = ["| capability | provider | schemes | abilities |", "|---|---|---|---|"]
    order = sorted(providers().items(), key=lambda item: (item[0][0], item[0][1].__name__))
    for (capability, provider), schemes in order:
        names = ", ".join(f"`{scheme}:`" for scheme in sorted(schemes))
        abilities = ", ".join(sorted(provider.abilities)) or "none"
        lines.append(f"| `{capability}` | `{provider.__name__}` | {names} | {abilities} |")
    declared = sorted({ability for _, provider in providers() for ability in provider.abilities})
    assert set(declared) <= set(MEANING), "an ability without a meaning: describe it here"
    lines += ["", "| ability | meaning |", "|---|---|"]
    lines += [f"| {ability} | {MEANING[ability]} |" for ability in declared]
    return HEAD + "\n".join(lines) + "\n"


def test_the_committed_table_is_what_the_providers_declare() -> None:
    assert TABLE.read_text() == table(), "write it anew: python tests/storage/test_abilities.py"


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
