"""A build leaves no image without a name behind, and touches none that it did not make."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


def left(label: str) -> tuple[str, str]:
    """What is there of a build whose first label this is: containers, and images without a name."""
    return docker("ps", "--all", "--quiet", f"--filter=label={label}"), docker(
        "images", "--all", "--quiet", "--filter=dangling=true", f"--filter=label={label}"
    )


def test_a_build_that_fails_leaves_nothing(folder: Path, tag: str) -> None:
    label = f"failing={uuid.uuid4()}"
    (folder / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nLABEL {label}\nCOPY file /file\nRUN false\n")
    with pytest.raises(SystemExit, match="returned a non-zero code"):
        images.build(folder, tag, images.base())
    assert left(label) == ("", "")


BUILD = """
import sys
from pathlib import Path
import images

folder = Path(sys.argv.pop())
images.SERVERS = ("slow",)
images.have = lambda server: images.build(folder, "kmp-test/nothing:slow", images.base())
sys.exit(images.main())
"""


@pytest.mark.parametrize("heard_by", ["all", "python"])
def test_a_build_that_is_interrupted_leaves_nothing(folder: Path, heard_by: str) -> None:
    label = f"slow={uuid.uuid4()}"
    (folder / "Dockerfile").write_text(f"ARG BASE\nFROM ${{BASE}}\nLABEL {label}\nCOPY file /f\nRUN sleep 600\n")
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder)],
        env={**os.environ, "PYTHONPATH": str(images.HERE)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        while not left(label)[0]:
            assert process.poll() is None, process.communicate()[0]
        (os.killpg if heard_by == "all" else os.kill)(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert left(label) == ("", "")


def test_what_a_killed_build_left_goes_with_the_next(folder: Path, tag: str) -> None:
    label = f"killed={uuid.uuid4()}"
    text = f"FROM {images.base()}\nLABEL {images.LABEL}=unfinished\nLABEL {label}\nCOPY file /file\n"
    (folder / "Dockerfile.killed").write_text(text)
    docker("build", "--quiet", "--file", str(folder / "Dockerfile.killed"), str(folder))
    assert left(label)[1]
    images.build(folder, tag, images.base())
    assert left(label) == ("", "")
    assert docker("inspect", "--format", f'{{{{index .Config.Labels "{images.LABEL}"}}}}', tag) == "finished"


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
