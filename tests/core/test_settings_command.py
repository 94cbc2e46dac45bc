"""`python -m kmp_core settings` tells everything, shows no secret, and never ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECRET = "correct-horse-battery"


@pytest.fixture
def run(tmp_path):
    def run(*arguments, cwd=tmp_path, **variables):
        environ = {name: value for name, value in os.environ.items() if not name.upper().startswith("KMP_")}
        result = subprocess.run(
            [sys.executable, "-m", "kmp_core", *arguments],
            cwd=cwd,
            env=environ | variables,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert "Traceback" not in result.stderr
        assert len(result.stderr.splitlines()) <= 25
        assert SECRET not in result.stdout + result.stderr
        return result

    return run


@pytest.fixture
def plugin(tmp_path):
    """A distribution that is installed in a directory of its own, with settings of its own."""
    site = tmp_path / "site"
    info = site / "acme_vault-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-vault\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[kmp.settings]\nacme.vault = acme_vault:VaultSettings\n[kmp.acme.vault]\nvault = acme_vault:Vault\n"
    )
    (site / "acme_vault.py").write_text(
        """
from pydantic import Field, SecretStr
from kmp_core.settings import Settings

class VaultSettings(Settings, prefix="acme.vault"):
    \"\"\"How to reach the vault.\"\"\"
    token: SecretStr
    \"\"\"The login.\"\"\"
    api_key: str = "unset-so-far"
    \"\"\"The other login, in a plain text field.\"\"\"
    address: str = "https://vault.example"
    \"\"\"Where | it is.\"\"\"
    port: int = Field(8200, ge=1, le=65535)
    \"\"\"On which port.\"\"\"
"""
    )
    return {"PYTHONPATH": str(site)}


def rows(result):
    return {row["variable"]: row for row in json.loads(result.stdout)["settings"]}


def test_lists_every_setting_with_value_and_source(run, tmp_path, plugin):
    (tmp_path / "kmp.toml").write_text('project = "skyline"\n[settings.acme.vault]\nport = 8201\n')
    result = run(
        "settings",
        "--json",
        **plugin,
        KMP_ACME_VAULT_TOKEN=SECRET,
        KMP_ACME_VAULT_API_KEY=SECRET,
        KMP_ACME_VAULT_ADDRESS=f"https://user:{SECRET}@vault.example/x",
        KMP_ACME_VAULT_URL=f"vault://user:{SECRET}@vault.example?token={SECRET}",
    )
    assert result.returncode == 0, result.stderr
    table = rows(result)
    assert table["KMP_PROJECT"]["value"] == "skyline"
    assert table["KMP_PROJECT"]["source"].endswith("kmp.toml [settings] project")
    assert (table["KMP_ACME_VAULT_PORT"]["value"], table["KMP_ACME_VAULT_PORT"]["default"]) == ("8201", "8200")
    assert table["KMP_ACME_VAULT_TOKEN"]["value"] == table["KMP_ACME_VAULT_API_KEY"]["value"] == "**********"
    assert table["KMP_ACME_VAULT_TOKEN"]["source"] == "environment"
    assert table["KMP_ACME_VAULT_ADDRESS"]["value"] == "https://***@vault.example/x"
    assert table["KMP_ACME_VAULT_URL"]["value"] == "vault://***@vault.example?token=***"
    assert table["KMP_ENV_FILE"]["value"] == "(not set)"
    assert table["KMP_CORE_SECRETS_URL"] | {"value": "env:", "source": "default"} == table["KMP_CORE_SECRETS_URL"]


def test_prints_one_aligned_line_for_each(run):
    result = run("settings", "core.secrets", KMP_CORE_SECRETS_TIMEOUT="7s")
    assert result.returncode == 0
    lines = [line for line in result.stdout.splitlines() if line.startswith("  KMP_")]
    assert {line.split()[0] for line in lines} >= {"KMP_CORE_SECRETS_TIMEOUT", "KMP_CORE_SECRETS_URL"}
    assert next(line for line in lines if "_SECRETS_TIMEOUT" in line).split()[1:] == ["7s", "environment"]
    assert len({line.index(line.split()[1]) for line in lines}) == 1


def test_wrong_settings_are_told_on_standard_error_without_their_values(run, plugin):
    result = run(
        "settings",
        **plugin,
        KMP_PROJECT="skyl\u0456ne",
        KMP_OPEN_TIMEOUT=SECRET,
        KMP_ACME_VAULT_PORT=SECRET,
        KMP_ACME_VAULT_TOKNE=SECRET,
        KMP_STORAGE_CACHE_URL=SECRET,
    )
    assert result.returncode == 1
    assert "KMP_PROJECT: contains U+0456 (CYRILLIC SMALL LETTER BYELORUSSIAN-UKRAINIAN I)" in result.stderr
    assert "KMP_OPEN_TIMEOUT: is not a duration (from environment); for example 30s" in result.stderr
    assert "KMP_ACME_VAULT_PORT: must be a whole number" in result.stderr
    assert "KMP_ACME_VAULT_TOKEN: is missing" in result.stderr
    assert "KMP_ACME_VAULT_TOKNE: is no setting; did you mean KMP_ACME_VAULT_TOKEN?" in result.stderr
    assert "KMP_STORAGE_CACHE_URL: must begin with a scheme" in result.stderr
    assert "(wrong)" in result.stdout


def test_an_unknown_scheme_and_a_plugin_that_cannot_be_used_are_told(run, plugin):
    site = Path(plugin["PYTHONPATH"])
    entries = site / "acme_vault-1.0.dist-info" / "entry_points.txt"
    entries.write_text("[kmp.storage.bucket]\nvault = acme_vault:Missing\n")
    result = run(
        "settings",
        **plugin,
        KMP_PROJECT="acme",
        KMP_STORAGE_CACHE_URL="memroy:",
        KMP_STORAGE_BUCKET_URL="vault:x",
        KMP_MESSAGING_BUS_URL=f"oracle:u:{SECRET}@x",
        KMP_STORAGE_GRAPH_URL="sqlite:",
    )
    assert result.returncode == 1
    told = [line for line in result.stderr.splitlines() if line.startswith("  - ")]
    assert len(told) == 3, result.stderr
    assert "KMP_STORAGE_CACHE_URL: no installed provider answers to the scheme 'memroy'" in result.stderr
    assert "did you mean 'memory'? For example sqlite:" in result.stderr
    assert "KMP_MESSAGING_BUS_URL: no installed provider answers to the scheme 'oracle'" in result.stderr
    assert "plugin 'vault' (acme_vault:Missing) of distribution acme-vault 1.0: failed to load" in result.stderr


def test_a_value_in_the_place_of_a_table_is_told_once(run, tmp_path):
    (tmp_path / "kmp.toml").write_text("[settings]\nstorage = 3\n")
    result = run("settings")
    assert result.returncode == 1
    assert result.stderr.count("[settings] storage: must be a table") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"project = ",
        b"project = 'skyl\xff'",
        b"[settings]\nproject = 7",
        b"settings = 1",
        b"a = " + b"[" * 50_000,
        b"[settings.core.secrets]\ntimeout = 'correct-horse-battery'",
    ],
)
def test_a_wrong_manifest_is_one_screen(run, tmp_path, content):
    (tmp_path / "kmp.toml").write_bytes(content)
    result = run("settings")
    assert result.returncode == 1
    assert str(tmp_path / "kmp.toml") in result.stderr


def test_a_directory_that_is_gone_is_no_traceback(run, tmp_path):
    program = f"import os; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); os.execv({sys.executable!r}, "
    program += f"[{sys.executable!r}, '-m', 'kmp_core', 'settings'])"
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in result.stderr


def test_a_plugin_that_cannot_be_imported_names_itself_and_leaves_the_others(run, plugin):
    (Path(plugin["PYTHONPATH"]) / "acme_vault.py").write_text(f"raise RuntimeError({SECRET!r})")
    result = run("settings", **plugin, KMP_ACME_VAULT_TOKEN="x", KMP_ACME_VAULT_PROT="1")
    assert result.returncode == 1
    assert "acme_vault:VaultSettings of acme-vault: cannot be imported (RuntimeError)" in result.stderr
    assert "KMP_CORE_SECRETS_TIMEOUT" in result.stdout


def test_the_reference_page_does_not_depend_on_what_is_set(run, tmp_path):
    plain = run("settings", "--markdown")
    (tmp_path / "kmp.toml").write_text("= broken")
    other = run("settings", "--markdown", KMP_CORE_SECRETS_TIMEOUT="9s", KMP_PROJECT="x y")
    assert plain.returncode == other.returncode == 0
    assert plain.stdout == other.stdout
    assert "| `KMP_CORE_SECRETS_TIMEOUT` | duration | `5s` |" in plain.stdout


def test_a_bar_in_a_description_does_not_break_the_reference(run, plugin):
    assert "Where \\| it is." in run("settings", "--markdown", **plugin).stdout


def test_looks_as_another_environment_does(run, tmp_path):
    (tmp_path / "kmp.toml").write_text("[env.prod.settings.core.secrets]\ntimeout = '9s'\n")
    assert rows(run("settings", "--json"))["KMP_CORE_SECRETS_TIMEOUT"]["value"] == "5s"
    table = rows(run("settings", "--json", "--environment", "prod"))
    assert table["KMP_CORE_SECRETS_TIMEOUT"]["value"] == "9s"
    assert table["KMP_ENVIRONMENT"] | {"value": "prod", "source": "argument"} == table["KMP_ENVIRONMENT"]


@pytest.mark.parametrize(
    "arguments", [(), ("setings",), ("settings", "no.such.prefix"), ("settings", "--json", "--markdown")]
)
def test_a_wrong_command_is_told_with_exit_code_two(run, arguments):
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stderr


def test_help_names_the_exit_codes(run):
    result = run("settings", "--help")
    assert result.returncode == 0
    assert "Exit code" in result.stdout


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "kmp_core", "settings"],
            cwd=tmp_path,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writing)
    assert (result.returncode, result.stderr) == (0, "")
