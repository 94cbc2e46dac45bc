"""Check built distributions before anyone installs them: version, pins, licence, typing marker, entry points."""

from __future__ import annotations

import email
import email.message
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

SIBLINGS = {"kmp-core", "kmp-storage", "kmp-messaging"}


def main(dist: Path) -> int:
    wheels = sorted(dist.glob("*.whl"))
    found = [fault for wheel in wheels for fault in faults(wheel)]
    versions = {name: version for name, version in map(identity, wheels) if name in SIBLINGS}
    if set(versions) != SIBLINGS or len(set(versions.values())) != 1:
        found.append(f"the siblings' versions differ, or one is missing: {versions}")
    for fault in found:
        print(fault)
    print(f"{len(wheels)} wheels, version {', '.join(sorted(set(versions.values())))}, {len(found)} faults")
    return bool(found)


def faults(path: Path) -> Iterator[str]:
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        metadata = read_metadata(wheel)
        name, version = metadata["Name"], metadata["Version"]
        package = name.replace("-", "_")
        yield from (f"{path.name}: lacks {wanted}" for wanted in required(name, version) if wanted not in names)
        yield from (f"{path.name}: metadata lacks {field}" for field in fields(name) if not metadata.get(field))
        for requirement in metadata.get_all("Requires-Dist", []):
            # Its extras may be asked for: "kmp-core[http]==1.0; extra == 'buckets'".
            pinned = re.fullmatch(r"([\w-]+)(?:\[[\w,]+\])?(.*?)(?: *;.*)?", requirement)
            sibling = pinned[1] if pinned is not None and pinned[1] in SIBLINGS else None
            if name in SIBLINGS and pinned is not None and sibling and pinned[2] != f"=={version}":
                yield f"{path.name}: {requirement!r} does not pin the sibling to {version}"
        strays = [n for n in names if not n.startswith((package + "/", f"{package}-{version}.dist-info/"))]
        yield from (f"{path.name}: carries {stray}" for stray in strays)
        yield from broken_entry_points(path, wheel, names)
    yield from source_faults(path.parent / f"{package}-{version}.tar.gz")


def required(name: str, version: str) -> list[str]:
    package = name.replace("-", "_")
    typed = [f"{package}/py.typed"]
    return [*typed, f"{package}-{version}.dist-info/licenses/LICENSE"] if name in SIBLINGS else typed


def fields(name: str) -> list[str]:
    always = ["Name", "Version", "Summary", "Requires-Python"]
    return [*always, "License-Expression", "Description-Content-Type"] if name in SIBLINGS else always


def broken_entry_points(path: Path, wheel: zipfile.ZipFile, names: list[str]) -> Iterator[str]:
    """Entry points whose module is not in the wheel."""
    file = next((name for name in names if name.endswith(".dist-info/entry_points.txt")), None)
    if file is None:
        return
    parser = ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # typeshed cannot say that names keep their case
    parser.read_string(wheel.read(file).decode())
    for group in parser.sections():
        for name, value in parser.items(group):
            module = value.partition(":")[0].replace(".", "/")
            if f"{module}.py" not in names and f"{module}/__init__.py" not in names:
                yield f"{path.name}: entry point {group}.{name} names {value}, which it does not carry"


def source_faults(path: Path) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name}: missing"
        return
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    yield from (f"{path.name}: lacks {wanted}" for wanted in ("pyproject.toml", "PKG-INFO") if wanted not in inside)


def identity(path: Path) -> tuple[str, str]:
    with zipfile.ZipFile(path) as wheel:
        metadata = read_metadata(wheel)
    return str(metadata["Name"]), str(metadata["Version"])


def read_metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    file = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(file))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
