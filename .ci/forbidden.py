"""Nothing that is committed names one machine: neither a developer's home directory nor a package index's address.

A requirements file must work behind any mirror, and a path of somebody's disk works nowhere else.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

# Written so that this file does not match itself.
FORBIDDEN = {
    "the address of a package index": re.compile(
        r"://[a-z0-9.-]*(?:[p]ypi\.|[p]ythonhosted|registry\.[n]pm|repo1?\.[m]aven|[c]rates\.io|proxy\.[g]olang|deb\.[d]ebian)"
    ),
    "a path of one machine": re.compile(r"(?<![\w.~-])/(?:home|Users)/[a-z]\w*/|(?<![\w.~-])/[r]oot/"),
    "a conflict marker": re.compile(r"^(?:[<]{7} |[>]{7} )", re.MULTILINE),
}


def tracked() -> list[Path]:
    """Every file that is or would be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in listed.split("\0") if name and Path(name).is_file()]


def faults(file: Path) -> list[str]:
    """What is wrong with one file, by line."""
    try:
        text = file.read_text()
    except UnicodeDecodeError:
        return []
    return [
        f"{file}:{text.count(chr(10), 0, match.start()) + 1}: {what}"
        for what, pattern in FORBIDDEN.items()
        for match in pattern.finditer(text)
    ]


if __name__ == "__main__":
    found = [fault for file in tracked() for fault in faults(file)]
    sys.exit("\n".join(found) or 0)
