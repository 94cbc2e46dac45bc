"""kmp.toml is found upward, and a file that is none is refused with its place and what would be right."""

from __future__ import annotations

import contextlib
import os

import pytest

from kmp_core.errors import ConfigurationError
from kmp_core.settings.files import MAX_BYTES
from kmp_core.settings.manifest import find_manifest, read_manifest


def fault_of(path):
    with pytest.raises(ConfigurationError) as caught:
        read_manifest(path)
    (fault,) = caught.value.faults
    assert fault.example
    return fault


def test_the_nearest_one_upward_counts(tmp_path):
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_manifest(deep) is None
    (tmp_path / "kmp.toml").touch()
    assert find_manifest(deep) == tmp_path / "kmp.toml"
    (deep / "kmp.toml").touch()
    assert find_manifest(deep) == deep / "kmp.toml"


def test_a_broken_link_is_the_nearest_one_and_an_error(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "kmp.toml").write_text('project = "far"')
    (tmp_path / "a" / "kmp.toml").symlink_to("nowhere")
    path = find_manifest(tmp_path / "a")
    assert path is not None
    assert "does not exist" in fault_of(path).problem


def test_a_named_one_counts_from_where_we_are(tmp_path):
    assert find_manifest(tmp_path, "x.toml") == tmp_path / "x.toml"
    assert find_manifest(tmp_path, "/etc/kmp.toml") == find_manifest(tmp_path.parent, "/etc/kmp.toml")


def test_settings_and_overlays_are_read_and_the_rest_is_left_alone(tmp_path):
    path = tmp_path / "kmp.toml"
    path.write_text(
        'project = "skyline"\n[settings.a]\nx = 1\n[env.prod.settings.a]\nx = 2\n[env.test]\n[topics.flights]\nx = 3\n'
    )
    manifest = read_manifest(path)
    assert manifest.project == "skyline"
    assert manifest.settings == {"a": {"x": 1}}
    assert manifest.overlay("prod") == {"a": {"x": 2}}
    assert manifest.overlay("test") == manifest.overlay("unheard-of") == {}
    assert manifest.environments == ("prod", "test")
    assert manifest.data["topics"] == {"flights": {"x": 3}}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("project = ", "line 1"),
        ("a = 1\nb = = 2\n", "line 2"),
        ("a = 1\na = 2\n", "line 2"),
        ('{"project": "skyline"}', "line 1"),
        ("a = 1\n\0", "line 2"),
    ],
)
def test_what_is_not_toml_is_told_with_its_line(tmp_path, text, line):
    path = tmp_path / "kmp.toml"
    path.write_text(text)
    fault = fault_of(path)
    assert fault.field == str(path)
    assert "is not TOML" in fault.problem
    assert line in fault.problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a = 1\nb = '\xff'\n", "is not UTF-8 (at line 2)"),
        ('project = "skyline"'.encode("utf-16"), "is not UTF-8 (at line 1)"),
        (b"a = " + b"[" * 100_000, "is n"),
        (b"#" * (MAX_BYTES + 1), "is larger than 1 MiB"),
        (b"project = 7", "must be text"),
        (b"settings = 7", "must be a table"),
        (b"env = 7", "must be a table"),
        (b"[env]\nprod = 7", "must be a table"),
        (b"[env.prod]\nsettings = 7", "must be a table"),
    ],
)
def test_every_wrong_content_is_one_clear_fault(tmp_path, content, problem):
    path = tmp_path / "kmp.toml"
    path.write_bytes(content)
    assert problem in fault_of(path).problem


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "kmp.toml"
    path.write_bytes(b"\xef\xbb\xbfproject = 'skyline'")
    assert read_manifest(path).project == "skyline"


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.mkdir(), "is a directory"),
        (os.mkfifo, "not a regular file"),
        (lambda path: None, "not exist"),
    ],
)
def test_what_is_no_file_is_an_error_and_not_a_hang(tmp_path, make, problem):
    make(tmp_path / "kmp.toml")
    assert problem in fault_of(tmp_path / "kmp.toml").problem


def test_a_file_that_may_not_be_read_is_named(tmp_path):
    path = tmp_path / "kmp.toml"
    path.touch(mode=0)
    with nobody():
        assert "Permission denied" in fault_of(path).problem


@pytest.mark.parametrize(
    ("misspelt", "meant"), [("projct", "project"), ("Project", "project"), ("setings", "settings"), ("envs", "env")]
)
def test_what_looks_like_a_key_misspelt_is_told(tmp_path, misspelt, meant):
    path = tmp_path / "kmp.toml"
    path.write_text(f'{misspelt} = "skyline"\nowner = "the tower"\n')
    fault = fault_of(path)
    assert fault.field == misspelt
    assert f"did you mean {meant}?" in fault.problem


@contextlib.contextmanager
def nobody():
    """Root may read everything, so step down for a moment."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
