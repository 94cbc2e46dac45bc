"""One version for all distributions, from the tag, wherever the sources came from; built for real."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

SIBLINGS = {"kmp-core", "kmp-messaging", "kmp-storage"}

Git = Callable[..., str]


@pytest.fixture
def sources(tmp_path: Path, root: Path) -> Path:
    """The files of this clone that decide about versions, in a directory that is no repository yet."""
    listed = ["packages", ".git_archival.json", ".gitattributes", ".gitignore", "LICENSE"]
    copy = tmp_path / "sources"
    copy.mkdir()
    subprocess.run(["cp", "-a", *(str(root / name) for name in listed), str(copy)], check=True)
    return copy


@pytest.fixture
def git(sources: Path) -> Git:
    """git in a repository of those files, with one commit."""
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-c", "init.defaultBranch=main", "-C", str(sources), *arguments]
        return subprocess.run(command, env={**kept, **who}, capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    git("add", "-A")
    git("commit", "-q", "-m", "first")
    return git


def build(sources: Path, out: Path, *packages: str) -> dict[str, email.message.Message]:
    """The metadata of the wheels, each built from the source distribution, as a release is."""
    for package in packages:
        command = [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--outdir",
            str(out),
            str(sources / "packages" / package),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for wheel in out.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            file = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            metadata = email.message_from_bytes(archive.read(file))
        found[str(metadata["Name"])] = metadata
    return found


def version(sources: Path, package: str = "kmp-storage") -> str:
    """The version that a build of this directory would have, asked of the build backend."""
    command = [sys.executable, "-m", "hatchling", "version"]
    done = subprocess.run(command, cwd=sources / "packages" / package, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_tag_is_the_version_of_all_and_siblings_are_pinned_to_it(sources: Path, git: Git, tmp_path: Path) -> None:
    git("tag", "v0.1.0")
    built = build(sources, tmp_path / "out", *sorted(SIBLINGS))
    assert {name: metadata["Version"] for name, metadata in built.items()} == dict.fromkeys(SIBLINGS, "0.1.0")
    for name in SIBLINGS - {"kmp-core"}:
        assert "kmp-core==0.1.0" in built[name].get_all("Requires-Dist", []), name


def test_after_a_tag_come_development_versions_of_the_next(sources: Path, git: Git, tmp_path: Path) -> None:
    git("tag", "v0.1.0")
    git("commit", "-q", "--allow-empty", "-m", "second")
    expected = f"0.1.1.dev1+{git('rev-parse', 'HEAD')[:7]}"
    assert version(sources) == expected
    metadata = build(sources, tmp_path / "out", "kmp-storage")["kmp-storage"]
    assert metadata["Version"] == expected
    assert f"kmp-core=={expected}" in metadata.get_all("Requires-Dist", [])


def test_a_clone_without_tags_has_the_fallback_in_versions_and_pins(sources: Path, git: Git, tmp_path: Path) -> None:
    assert git("tag") == ""
    metadata = build(sources, tmp_path / "out", "kmp-storage")["kmp-storage"]
    assert metadata["Version"] == "0.1.0.dev0"
    assert "kmp-core==0.1.0.dev0" in metadata.get_all("Requires-Dist", [])


def test_sources_without_a_repository_have_the_fallback(sources: Path) -> None:
    assert version(sources) == "0.1.0.dev0"


def test_a_source_archive_of_a_tag_knows_it(git: Git, tmp_path: Path) -> None:
    git("tag", "-a", "v0.1.0", "-m", "release")
    git("archive", "--output", str(tmp_path / "archive.tar"), "HEAD")
    (tmp_path / "archive").mkdir()
    subprocess.run(["tar", "-xf", str(tmp_path / "archive.tar"), "-C", str(tmp_path / "archive")], check=True)
    assert version(tmp_path / "archive") == "0.1.0"


def test_every_distribution_is_versioned_alike(root: Path) -> None:
    sections = {
        file.parent.name: file.read_text().partition("[tool.uv-dynamic-versioning]")[2].partition("\n[")[0]
        for file in root.glob("packages/*/pyproject.toml")
    }
    assert set(sections) >= SIBLINGS
    assert len(set(sections.values())) == 1
