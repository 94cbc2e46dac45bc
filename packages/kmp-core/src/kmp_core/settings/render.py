"""The report of all settings as a table for people, as JSON for programs, and as the reference page of the docs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from kmp_core.settings.report import Report, Row, Section

__all__ = ["as_json", "as_markdown", "as_table"]

_INTRODUCTION = """\
# Settings

Every setting has a variable, and a key in `kmp.toml`: `KMP_STORAGE_CACHE_MAX_BYTES=1GiB` says the same as

```toml
[settings.storage.cache]
max_bytes = "1GiB"
```

What is said first counts: arguments in code, the environment, an env file, mounted secrets, the table
`[env.<environment>.settings]` of `kmp.toml`, its table `[settings]`, the default. A duration is a number with a unit,
`250ms`, `30s`, `5m`, `1h` or `90d`; bytes are a number with a unit, `64KiB`, `256MiB` or `1GiB`.
`python -m kmp_core settings` shows the values that count here and now, and where they come from.
"""


def as_table(report: Report, width: int = 120) -> str:
    """One aligned line a setting, for a terminal of this width."""
    rows = [row for section in report.sections for row in section.rows]
    name = max((len(row.variable) for row in rows), default=0)
    value = min(max((len(row.value) for row in rows), default=0), max(20, width - name - 24))
    return "\n".join(line for section in report.sections for line in _table(section, name, value))


def _table(section: Section, name: int, value: int) -> Iterator[str]:
    if not section.rows:
        return
    yield f"{section.title if not section.prefix else f'{section.prefix}: {section.title}'}"
    for row in section.rows:
        shown = row.value if len(row.value) <= value else row.value[: value - 1] + "…"
        yield f"  {row.variable:<{name}}  {shown:<{value}}  {row.source}".rstrip()
    yield ""


def as_json(report: Report) -> str:
    """Everything that the report knows, one object a setting."""
    settings = [{"prefix": s.prefix, **asdict(row)} for s in report.sections for row in s.rows]
    document = {
        "environment": report.environment,
        "manifest": None if report.manifest is None else str(report.manifest),
        "settings": settings,
        "faults": [asdict(fault) for fault in report.faults],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def as_markdown(report: Report) -> str:
    """The reference page: what can be set, whatever is set here."""
    parts = [_INTRODUCTION]
    for section in report.sections:
        if section.rows:
            heading = f"`{section.prefix}`" if section.prefix else section.title.rstrip(".")
            parts.append(f"## {heading}\n")
            parts.append(f"{section.title}\n" if section.prefix else "")
            parts.append("| variable | type | default | |\n|---|---|---|---|")
            parts.extend(_markdown_row(row) for row in section.rows)
            parts.append("")
    return "\n".join(parts).replace("\n\n\n", "\n\n")


def _markdown_row(row: Row) -> str:
    cells = (f"`{row.variable}`", row.type, f"`{row.default}`" if row.default else "", row.description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
