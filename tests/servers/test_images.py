"""A build leaves no image without a name behind, and touches none that it did not make."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import images
import pytest


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], capture_output=True, text=True, check=True).stdout.strip()


def unnamed() -> set[str]:
    return set(docker("images", "--quiet", "--no-trunc", "--filter=dangling=true").split())


@pytest.fixture
def folder(servers: Any, tmp_path: Path) -> Path:
    # Labels make layers without starting anything; new each time, so that nothing is in the engine's cache.
    stage = f"FROM ${{BASE}} AS stage\nLABEL one={uuid.uuid4()}\nCOPY file /file\n"
    (tmp_path / "Dockerfile").write_text(f"ARG BASE\n{stage}\nFROM ${{BASE}}\nCOPY --from=stage /file /copied\n")
    (tmp_path / "file").write_text(str(uuid.uuid4()))
    return tmp_path


@pytest.fixture
def tag() -> Iterator[str]:
    name = f"kmp-test/nothing:{uuid.uuid4().hex[:12]}"
    yield name
    subprocess.run(["docker", "rmi", name], capture_output=True, check=False)


def test_a_build_removes_its_own_unnamed_images_alone(folder: Path, tag: str, tmp_path_factory: Any) -> None:
    base = images.base()
    # Somebody else's image without a name.
    (other := tmp_path_factory.mktemp("other") / "Dockerfile").write_text(f"FROM {base}\nLABEL other={uuid.uuid4()}\n")
    built = subprocess.run(["docker", "build", "-q", str(other.parent)], capture_output=True, text=True, check=True)
    foreign = built.stdout.strip()
    try:
        images.build(folder, tag, base)
        assert images.exists(tag)
        stages = docker("images", "--quiet", "--filter=dangling=true", "--filter=label=one")
        assert stages == ""
        assert foreign in unnamed()
        # Built again all of it comes from the cache, or as much as is left: still nothing without a name.
        images.build(folder, tag, base)
        assert docker("images", "--quiet", "--filter=dangling=true", "--filter=label=one") == ""
    finally:
        docker("rmi", foreign)


def test_two_that_need_an_image_at_once_build_it_once(monkeypatch: pytest.MonkeyPatch, servers: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    there: set[str] = set()
    built: list[str] = []
    monkeypatch.setattr(images, "exists", lambda image: image in there)
    monkeypatch.setattr(images, "pull", lambda image: False)
    monkeypatch.setattr(images, "base", lambda: "base")

    def build(folder: Path, tag: str, base: str) -> None:
        built.append(tag)
        there.add(tag)

    monkeypatch.setattr(images, "build", build)
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(images.have, ["neo4j"] * 8))
    assert len(set(names)) == 1
    assert built == names[:1]
