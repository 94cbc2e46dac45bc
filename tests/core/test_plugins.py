"""Providers are found by the scheme of a URL, and what is wrong says what to do."""

from __future__ import annotations

import importlib
import subprocess
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Protocol

import pytest

from kmp_core import plugins
from kmp_core.capability import CapabilitySpec, capability, spec_of
from kmp_core.errors import ConfigurationError, MissingExtra, PluginError, UnknownScheme
from kmp_core.resource import Resource

TIMESERIES = CapabilitySpec("storage.timeseries", "sqlite:")
SPEC = CapabilitySpec("test.plug", "good:")


@capability("test.plug", default="good:")
class Plug(Resource, Protocol):
    @abstractmethod
    async def use(self) -> None: ...


class Registered:
    @classmethod
    def from_url(cls, url, *, context): ...


@pytest.fixture(autouse=True)
def scanned_anew():
    plugins.forget()
    yield
    plugins.forget()


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution on the path: its metadata, and a module of its own."""

    def install(distribution: str, module: str, source: str, **schemes: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "\n".join(f"{scheme} = {target}" for scheme, target in schemes.items())
        (info / "entry_points.txt").write_text(f"[kmp.test.plug]\n{lines}\n")
        (tmp_path / f"{module}.py").write_text(source)
        monkeypatch.delitem(sys.modules, module, raising=False)

    monkeypatch.syspath_prepend(str(tmp_path))
    return install


GOOD = "class Good:\n    @classmethod\n    def from_url(cls, url, *, context): return cls()\n"


def name_of(provider: object) -> str:
    return str(getattr(provider, "__name__", provider))


def test_a_plugin_is_found_by_the_scheme_of_the_url(install):
    install("acme-good", "acme_good", GOOD, good="acme_good:Good")
    assert name_of(plugins.find(SPEC, "good://host/path")) == "Good"
    assert name_of(plugins.find(SPEC, "GOOD:")) == "Good"
    assert plugins.installed(SPEC) == ["good"]


def test_only_the_plugin_that_is_named_is_imported(install):
    install("acme-good", "acme_good", GOOD, good="acme_good:Good")
    install("acme-loud", "acme_loud", "raise SystemExit('imported')", loud="acme_loud:Loud")
    plugins.find(SPEC, "good:")
    assert "acme_loud" not in sys.modules


def test_what_is_registered_comes_before_what_is_installed(install):
    install("acme-good", "acme_good", GOOD, good="acme_good:Good")
    plugins.register(Plug, "good", Registered)
    assert plugins.find(spec_of(Plug), "good:") is Registered


def test_entry_points_are_scanned_once(install, monkeypatch):
    install("acme-good", "acme_good", GOOD, good="acme_good:Good")
    plugins.find(SPEC, "good:")
    monkeypatch.setattr("importlib.metadata.distributions", lambda: pytest.fail("scanned again"))
    plugins.find(SPEC, "good:")


@pytest.mark.parametrize(
    ("capability_name", "scheme", "installation"),
    [
        ("storage.bucket", "gs", "kmp-storage[buckets]"),
        ("messaging.bus", "kafka", "kmp-messaging[kafka]"),
    ],
)
def test_unknown_scheme_says_what_to_install(capability_name, scheme, installation):
    spec = CapabilitySpec(capability_name, "sqlite:")
    with pytest.raises(UnknownScheme) as raised:
        plugins.find(spec, f"{scheme}://app:hunter2@host/db")
    message = str(raised.value)
    assert f"pip install '{installation}'" in message
    assert spec.variable in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("capability_name", "scheme", "driver", "installation"),
    [
        ("storage.timeseries", "timescale", "asyncpg", "timescale"),
        ("storage.graph", "neo4j", "neo4j", "neo4j"),
        ("storage.cache", "redis", "redis", "redis"),
        ("storage.bucket", "s3", "obstore", "buckets"),
        ("storage.bucket", "az", "obstore", "buckets"),
    ],
)
def test_missing_driver_says_what_to_install(capability_name, scheme, driver, installation):
    program = f"""
import sys
sys.modules[{driver!r}] = None
from kmp_core import plugins
from kmp_core.capability import CapabilitySpec
from kmp_core.errors import MissingExtra
try:
    plugins.find(CapabilitySpec({capability_name!r}, "sqlite:"), "{scheme}://app:hunter2@host/db")
except MissingExtra as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert f"kmp-storage[{installation}]" in done.stdout
    assert "hunter2" not in done.stdout


def test_unknown_scheme_lists_the_known_ones_and_the_one_that_was_meant(install):
    install("acme-good", "acme_good", GOOD, good="acme_good:Good", better="acme_good:Good")
    with pytest.raises(UnknownScheme, match=r"(?s)installed: better, good.*did you mean 'good'") as raised:
        plugins.find(SPEC, "goood:")
    assert "For example good:" in str(raised.value)


@pytest.mark.parametrize("url", ["", "nonsense", "://host", "with space://x", "ümlaut:x"])
def test_text_without_a_scheme_is_refused_without_being_shown(url):
    with pytest.raises(UnknownScheme) as raised:
        plugins.find(SPEC, url)
    assert "not a URL with a scheme" in str(raised.value)
    assert not url or url not in str(raised.value)


def test_a_plugin_whose_import_fails_names_itself_and_its_distribution_and_disables_no_other(install):
    install("acme-good", "acme_good", GOOD, good="acme_good:Good")
    install("acme-broken", "acme_broken", "import no_such_module", broken="acme_broken:Broken")
    with pytest.raises(PluginError) as raised:
        plugins.find(SPEC, "broken:")
    message = str(raised.value)
    for part in ("'broken'", "acme_broken:Broken", "acme-broken 1.0", "no_such_module"):
        assert part in message
    assert isinstance(raised.value.__cause__, ModuleNotFoundError)
    assert name_of(plugins.find(SPEC, "good:")) == "Good"


@pytest.mark.parametrize("source", ["", "class Broken: pass"])
def test_a_plugin_that_names_nothing_usable_is_refused(install, source):
    install("acme-broken", "acme_broken", source, broken="acme_broken:Broken")
    with pytest.raises(PluginError, match=r"acme-broken 1\.0"):
        plugins.find(SPEC, "broken:")


def test_two_plugins_of_one_name_are_an_error_that_names_both_distributions(install):
    install("acme-one", "acme_one", GOOD, good="acme_one:Good")
    install("acme-two", "acme_two", GOOD, good="acme_two:Good")
    with pytest.raises(PluginError, match=r"acme-one 1\.0 and by acme-two 1\.0"):
        plugins.find(SPEC, "good:")
    plugins.register(Plug, "good", Registered)
    assert plugins.find(spec_of(Plug), "good:") is Registered


def test_a_distribution_that_lies_on_the_path_twice_is_no_conflict(install, tmp_path, monkeypatch):
    install("acme-good", "acme_good", GOOD, good="acme_good:Good")
    twin = tmp_path / "twin" / "acme_good-0.9.dist-info"
    twin.mkdir(parents=True)
    for name in ("METADATA", "entry_points.txt"):
        text = (tmp_path / "acme_good-1.0.dist-info" / name).read_text()
        (twin / name).write_text(text.replace("1.0", "0.9"))
    monkeypatch.syspath_prepend(str(twin.parent))
    assert name_of(plugins.find(SPEC, "good:")) == "Good"


def test_a_missing_driver_says_what_to_install(install):
    source = (
        "from kmp_core.plugins import extra\n"
        "with extra('no_such_driver', install='kmp-storage[timescale]'):\n    import no_such_driver.pool\n"
    )
    install("acme-driver", "acme_driver", source, driver="acme_driver:Driver")
    with pytest.raises(MissingExtra, match=r"pip install 'kmp-storage\[timescale\]'") as raised:
        plugins.find(SPEC, "driver:")
    assert isinstance(raised.value, ConfigurationError)
    assert isinstance(raised.value, ImportError)
    assert raised.value.name == "no_such_driver"


def test_an_import_error_from_inside_a_driver_passes_through(tmp_path, monkeypatch):
    (tmp_path / "driver_with_a_gap.py").write_text("import what_the_driver_needs")
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        pytest.raises(ModuleNotFoundError, match="what_the_driver_needs") as raised,
        plugins.extra("driver_with_a_gap", install="x"),
    ):
        importlib.import_module("driver_with_a_gap")
    assert not isinstance(raised.value, MissingExtra)


def test_importing_the_package_loads_no_driver_and_nothing_heavy():
    heavy = {"structlog", "tenacity", "cryptography", "jwt", "httpx", "opentelemetry", "sqlite3", "anyio", "pytest"}
    heavy |= {"pydantic_settings", "importlib.metadata"}
    code = "import sys; before = set(sys.modules); import kmp_core; print(*set(sys.modules) - before)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "kmp_core.service" in shown.split()
    assert heavy & set(shown.split()) == set()


def test_every_exported_name_exists_and_belongs_to_the_package():
    import kmp_core

    assert kmp_core.__all__ == sorted(kmp_core.__all__, key=lambda name: (name[0].islower(), name))
    for name in kmp_core.__all__:
        assert getattr(kmp_core, name) is not None
    assert "def __getattr__" not in Path(kmp_core.__file__).read_text()
