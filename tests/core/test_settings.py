"""Settings come from their sources in order, and everything that is wrong is told at once and without a value."""

from __future__ import annotations

import copy
import logging
import os
import pickle
import re
import traceback
from datetime import date, timedelta
from enum import Enum
from pathlib import Path
from typing import Literal, Self

import pytest
from pydantic import ByteSize, Field, SecretStr, field_validator, model_validator

from kmp_core.deadlines import Duration
from kmp_core.errors import ConfigurationError, Fault, InvalidInput
from kmp_core.service.settings import ServiceSettings
from kmp_core.settings import Settings, load_all
from kmp_core.settings.catalogue import SourceSettings, installed_classes
from kmp_core.settings.sources import Sources
from kmp_core.settings.url import ConnectionUrl, redact_url


class Color(Enum):
    RED = "red"


class PoolSettings(Settings, prefix="acme.pool"):
    """A pool."""

    pool_size: int = Field(10, ge=1, le=100)
    """Connections."""

    timeout: Duration = timedelta(seconds=5)
    """How long."""

    memory: ByteSize = ByteSize(1 << 20)
    """How much."""

    hosts: tuple[str, ...] = ()
    """Where."""

    mode: Literal["fast", "safe"] = "safe"
    """How."""

    color: Color = Color.RED
    """Which."""

    password: SecretStr | None = None
    """Credentials."""

    url: ConnectionUrl | None = None
    """The server."""


class LoginSettings(Settings, prefix="acme.login"):
    """A class whose validators are careless with values."""

    user: str
    """Who."""

    password: SecretStr
    """Credentials."""

    api_token: str = "none-so-far"
    """Credentials in a plain text field."""

    port: int = 5432
    """Where."""

    @field_validator("password")
    @classmethod
    def _long_enough(cls, value: SecretStr) -> SecretStr:
        if len(value.get_secret_value()) < 8:
            raise ValueError(f"{value.get_secret_value()[:3]}… is too short")
        return value

    @model_validator(mode="after")
    def _not_the_same(self) -> Self:
        if self.port == 1:
            raise ValueError(f"user {self.user} may not use {self.password.get_secret_value()} on port 1")
        return self


@pytest.fixture(autouse=True)
def _isolated(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.upper().startswith("KMP_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def faults_of(action) -> dict[str, Fault]:
    with pytest.raises(ConfigurationError) as caught:
        action()
    error = caught.value
    everything = "".join(traceback.format_exception(error))
    for secret in ("hunter2", "hunter", "s3cr3t"):
        assert secret not in everything
    assert error.__context__ is None
    assert error.__cause__ is None
    return {fault.field: fault for fault in error.faults}


def test_defaults_need_no_source():
    settings = PoolSettings.load()
    assert settings.pool_size == 10
    assert settings.timeout == timedelta(seconds=5)


def test_sources_count_in_their_order(monkeypatch, tmp_path):
    (tmp_path / "kmp.toml").write_text(
        "[settings.acme.pool]\npool_size = 1\n[env.prod.settings.acme.pool]\npool_size = 2\n"
    )
    assert PoolSettings.load().pool_size == 1
    monkeypatch.setenv("KMP_ENVIRONMENT", "prod")
    assert PoolSettings.load().pool_size == 2
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "KMP_ACME_POOL_POOL_SIZE").write_text("3\n")
    monkeypatch.setenv("KMP_SECRETS_DIR", "mounted")
    assert PoolSettings.load().pool_size == 3
    (tmp_path / ".env").write_text("KMP_ACME_POOL_POOL_SIZE=4\n")
    assert PoolSettings.load().pool_size == 4
    monkeypatch.setenv("KMP_ACME_POOL_POOL_SIZE", "5")
    assert PoolSettings.load().pool_size == 5
    assert PoolSettings.load(pool_size=6).pool_size == 6
    assert PoolSettings(pool_size=7).pool_size == 7


def test_the_environment_of_the_overlay_may_come_from_every_source(monkeypatch, tmp_path):
    manifest = tmp_path / "kmp.toml"
    tables = "".join(f"[env.{name}.settings.acme.pool]\npool_size = {size}\n" for name, size in (("a1", 1), ("b1", 2)))
    manifest.write_text(tables + '[settings]\nenvironment = "a1"\n')
    assert PoolSettings.load().pool_size == 1
    (tmp_path / ".env").write_text("KMP_ENVIRONMENT=b1\n")
    assert PoolSettings.load().pool_size == 2
    with Sources.read(environment="a1").used():
        assert PoolSettings.load().pool_size == 1
        assert ServiceSettings.load().environment == "a1"


def test_the_manifest_is_found_upward_and_can_be_named(monkeypatch, tmp_path):
    (tmp_path / "kmp.toml").write_text('project = "skyline"\n')
    (tmp_path / "deep" / "down").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "down")
    assert ServiceSettings.load().project == "skyline"
    (tmp_path / "deep" / "kmp.toml").write_text('project = "harbour"\n')
    assert ServiceSettings.load().project == "harbour"
    monkeypatch.setenv("KMP_MANIFEST", "../../kmp.toml")
    assert ServiceSettings.load().project == "skyline"


def test_an_env_file_can_be_named_and_expands_nothing(monkeypatch, tmp_path):
    (tmp_path / "local.env").write_text(
        "# comment\nexport KMP_ACME_POOL_PASSWORD='pa$HOME${PATH}#x'\n\nKMP_ACME_POOL_POOL_SIZE = 7\nOTHER=1\n"
    )
    monkeypatch.setenv("KMP_ENV_FILE", "local.env")
    settings = PoolSettings.load()
    assert settings.password is not None
    assert settings.password.get_secret_value() == "pa$HOME${PATH}#x"
    assert settings.pool_size == 7


def test_a_mounted_secret_loses_its_line_end_and_nothing_else(monkeypatch, tmp_path):
    (tmp_path / "KMP_ACME_POOL_PASSWORD").write_bytes(b" two words \r\n")
    (tmp_path / "README").write_bytes(b"\xff not ours")
    monkeypatch.setenv("KMP_SECRETS_DIR", str(tmp_path))
    password = PoolSettings.load().password
    assert password is not None
    assert password.get_secret_value() == " two words "


def test_an_empty_variable_counts_as_not_set(monkeypatch):
    monkeypatch.setenv("KMP_ACME_POOL_POOL_SIZE", "")
    assert PoolSettings.load().pool_size == 10


@pytest.mark.parametrize("text", ["a.example,b.example", '["a.example", "b.example"]', " a.example , b.example "])
def test_a_list_is_written_with_commas_or_as_json(monkeypatch, text):
    monkeypatch.setenv("KMP_ACME_POOL_HOSTS", text)
    assert PoolSettings.load().hosts == ("a.example", "b.example")


def test_units_are_understood(monkeypatch):
    monkeypatch.setenv("KMP_ACME_POOL_TIMEOUT", "250ms")
    monkeypatch.setenv("KMP_ACME_POOL_MEMORY", "64MiB")
    settings = PoolSettings.load()
    assert settings.timeout == timedelta(milliseconds=250)
    assert settings.memory == 64 << 20


def test_all_faults_are_told_at_once_each_with_source_and_example(monkeypatch, tmp_path):
    monkeypatch.setenv("KMP_ACME_POOL_TIMEOUT", "5 parsecs")
    monkeypatch.setenv("KMP_ACME_POOL_COLOR", "hunter2")
    (tmp_path / ".env").write_text("KMP_ACME_POOL_MEMORY=lots\n")
    (tmp_path / "mounted").mkdir()
    (tmp_path / "mounted" / "KMP_ACME_POOL_URL").write_text("hunter2 no url")
    monkeypatch.setenv("KMP_SECRETS_DIR", "mounted")
    (tmp_path / "kmp.toml").write_text(
        '[settings.acme.pool]\npool_size = "many"\n[env.dev.settings.acme.pool]\nmode = "hunter2"\n'
    )
    faults = faults_of(lambda: PoolSettings.load(hosts=7))
    sources = {name: str(fault.source).replace(f"{tmp_path}/", "") for name, fault in faults.items()}
    assert sources == {
        "KMP_ACME_POOL_TIMEOUT": "environment",
        "KMP_ACME_POOL_COLOR": "environment",
        "KMP_ACME_POOL_MEMORY": ".env",
        "KMP_ACME_POOL_URL": "mounted",
        "KMP_ACME_POOL_POOL_SIZE": "kmp.toml [settings.acme.pool] pool_size",
        "KMP_ACME_POOL_MODE": "kmp.toml [env.dev.settings.acme.pool] mode",
        "KMP_ACME_POOL_HOSTS": "argument",
    }
    assert all(fault.example for name, fault in faults.items() if name != "KMP_ACME_POOL_HOSTS")


def test_an_example_is_accepted(monkeypatch):
    for name in ("POOL_SIZE", "TIMEOUT", "MEMORY", "MODE", "COLOR", "URL"):
        monkeypatch.setenv(f"KMP_ACME_POOL_{name}", "\x7f")
    faults = faults_of(PoolSettings.load)
    assert len(faults) == 6
    for name, fault in faults.items():
        monkeypatch.setenv(name, str(fault.example))
    PoolSettings.load()


class EverySettings(Settings, prefix="acme.every"):
    """One field of each kind."""

    count: int = Field(5, ge=1, le=9)
    ratio: float = Field(0.5, gt=0, lt=1)
    switch: bool = False
    size: ByteSize = Field(ByteSize(4096), ge=1024)
    wait: Duration = Field(timedelta(seconds=5), gt=timedelta(0))
    names: tuple[str, ...] = Field((), max_length=2, examples=["a,b"])
    limits: dict[str, int] = Field(default_factory=dict, examples=['{"a": 1}'])
    mode: Literal["fast", "safe"] = "safe"
    color: Color = Color.RED
    place: Path = Path()
    code: str = Field("ab", pattern="^[a-z]+$", max_length=3)
    server: ConnectionUrl | None = None
    day: date = Field(date(2013, 1, 1), examples=["2013-01-01"])


@pytest.mark.parametrize(
    ("name", "value", "problem", "example"),
    [
        ("count", "five", "must be a whole number", "5"),
        ("count", "1.5", "must be a whole number", "5"),
        ("count", [1], "must be a whole number", "5"),
        ("count", "9" * 5000, "must be a whole number, and not as large", "5"),
        ("count", "10", "must be from 1 to 9", "5"),
        ("ratio", "half", "must be a number", "0.5"),
        ("ratio", "nan", "must be more than 0 and less than 1", "0.5"),
        ("ratio", "1e400", "must be more than 0 and less than 1", "0.5"),
        ("switch", "perhaps", "must be true or false", "true"),
        ("switch", 2.5, "must be true or false", "true"),
        ("size", "lots", "must be a size in bytes, or with a unit such as KiB, MB or GiB", "4KiB"),
        ("size", "7hunter2", "must be a size in bytes, or with a unit such as KiB, MB or GiB", "4KiB"),
        ("size", "1", "must be from 1KiB", "4KiB"),
        ("wait", "5 parsecs", "is not a duration", "5s"),
        ("wait", "0s", "must be more than 0s", "5s"),
        ("names", 7, "must be a list, `a,b` or JSON", "a,b"),
        ("names", "a,b,c", "must have at most 2 entries", "a,b"),
        ("names", '["a", 7]', "entry 2 must be text", "a,b"),
        ("limits", "[1]", "must be a table, or an object in JSON", '{"a": 1}'),
        ("limits", '{"a": "hunter2"}', "must be a whole number", '{"a": 1}'),
        ("mode", "hunter2", "must be 'fast' or 'safe'", "fast"),
        ("color", "hunter2", "must be 'red'", "red"),
        ("place", 7, "must be a path", "/var/lib/kmp"),
        ("code", 7, "must be text", "ab"),
        ("code", "A1", "must match ^[a-z]+$", "ab"),
        ("code", "abcd", "must have at most 3 characters", "ab"),
        ("server", "hunter2", "must begin with a scheme and a colon", "sqlite:"),
        ("server", "x: hunter2", "must not contain spaces, line ends or control characters", "sqlite:"),
        ("server", 7, "must be text", "sqlite:"),
        ("day", "hunter2", "is not accepted (date_from_datetime_parsing)", "2013-01-01"),
    ],
)
def test_each_fault_is_told_in_our_words_with_an_example(monkeypatch, tmp_path, name, value, problem, example):
    if isinstance(value, str):
        monkeypatch.setenv(f"KMP_ACME_EVERY_{name.upper()}", value)
    else:
        (tmp_path / "kmp.toml").write_text(f"[settings.acme.every]\n{name} = {value}\n")
    fault = faults_of(EverySettings.load)[f"KMP_ACME_EVERY_{name.upper()}"]
    assert (fault.problem, fault.example) == (problem, example)


TELLING = [one for one in installed_classes() if one is not SourceSettings]  # the places of sources: see below


@pytest.mark.parametrize("settings_class", TELLING, ids=lambda one: one.__name__)
def test_no_installed_setting_speaks_pydantic_and_each_example_is_accepted(settings_class):
    foreign = re.compile(r"[Ii]nput|valid|should|unable|hunter|parse|\(|greater|equal")
    texts = ["\x7f", "-1", "1.5", "9" * 40, "nan", "5hunter2", "a b", "x" * 200, "/" + "x" * 5000]
    for name, field in settings_class.model_fields.items():
        variable = settings_class.key(name).variable
        examples = set()
        for text in texts:
            for fault in _faults(settings_class, variable, text):
                assert not foreign.search(fault.problem), fault
                assert fault.source == "environment"
                examples.add(fault.example)
        for example in examples:
            assert example is not None, variable
            if field.annotation not in (Path, Path | None):  # which may have to be there
                assert not _faults(settings_class, variable, example), example


def _faults(settings_class, variable, text):
    with Sources.read({variable: text}, directory=Path("/")).used():
        try:
            settings_class.load()
        except ConfigurationError as error:
            return [fault for fault in error.faults if fault.field == variable]
    return []


def test_a_missing_sibling_does_not_show_a_secret(monkeypatch):
    monkeypatch.setenv("KMP_ACME_LOGIN_PASSWORD", "hunter2hunter2")
    monkeypatch.setenv("KMP_ACME_LOGIN_API_TOKEN", "s3cr3t")
    assert faults_of(LoginSettings.load)["KMP_ACME_LOGIN_USER"].problem == "is missing"


def test_a_validator_that_quotes_a_part_of_a_secret_is_not_quoted(monkeypatch):
    monkeypatch.setenv("KMP_ACME_LOGIN_USER", "u")
    monkeypatch.setenv("KMP_ACME_LOGIN_PASSWORD", "hunter2")
    faults = faults_of(LoginSettings.load)
    assert "hun" not in str(faults)
    assert faults["KMP_ACME_LOGIN_PASSWORD"].problem == "is not accepted"


def test_a_model_validator_that_quotes_a_sibling_s_secret_is_not_quoted(monkeypatch):
    monkeypatch.setenv("KMP_ACME_LOGIN_PASSWORD", "hunter2hunter2")
    faults = faults_of(lambda: LoginSettings.load(user="u", port=1))
    assert faults["KMP_ACME_LOGIN_*"].problem == "is not accepted"


def test_a_secret_in_the_wrong_variable_is_not_shown(monkeypatch):
    monkeypatch.setenv("KMP_ACME_LOGIN_PORT", "hunter2")
    monkeypatch.setenv("KMP_ACME_POOL_URL", "s3cr3t")
    faults_of(LoginSettings.load)
    faults_of(PoolSettings.load)


def test_bytes_that_are_no_text_are_a_fault(monkeypatch):
    monkeypatch.setitem(os.environ, "KMP_ACME_LOGIN_USER", os.fsdecode(b"a\xff"))
    monkeypatch.setenv("KMP_ACME_LOGIN_PASSWORD", "hunter2hunter2")
    assert "KMP_ACME_LOGIN_USER" in faults_of(LoginSettings.load)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1,", '{"a": 1}', "["])
def test_a_list_that_is_broken_json_is_a_fault(monkeypatch, text):
    monkeypatch.setenv("KMP_ACME_POOL_HOSTS", text)
    assert "KMP_ACME_POOL_HOSTS" in faults_of(PoolSettings.load)


def test_load_all_reports_every_class_and_each_source_once(monkeypatch, tmp_path):
    (tmp_path / "kmp.toml").write_text("= broken")
    monkeypatch.setenv("KMP_ACME_POOL_POOL_SIZE", "0")
    with pytest.raises(ConfigurationError) as caught:
        load_all(PoolSettings, LoginSettings)
    fields = [fault.field for fault in caught.value.faults]
    assert fields == [
        str(tmp_path / "kmp.toml").replace(str(tmp_path) + "/", str(tmp_path) + "/"),
        "KMP_ACME_POOL_POOL_SIZE",
        "KMP_ACME_LOGIN_USER",
        "KMP_ACME_LOGIN_PASSWORD",
    ]


def test_load_all_gives_each_class_its_settings():
    loaded = load_all(PoolSettings, ServiceSettings, sources=Sources.read({"KMP_ACME_POOL_POOL_SIZE": "3"}))
    assert loaded[PoolSettings] == PoolSettings(pool_size=3)
    assert isinstance(loaded[ServiceSettings], ServiceSettings)


def test_sources_in_use_hide_the_real_environment(monkeypatch):
    monkeypatch.setenv("KMP_ACME_POOL_POOL_SIZE", "9")
    with Sources(()).used():
        assert PoolSettings.load().pool_size == 10
    assert PoolSettings.load().pool_size == 9


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("KMP_PROJCT", "KMP_PROJECT"),
        ("KMP_ENV", "KMP_ENVIRONMENT"),
        ("kmp_project", "KMP_PROJECT"),
        ("KMP_LOGLEVEL", "KMP_LOG_LEVEL"),
        ("KMP_SECRET_DIR", "KMP_SECRETS_DIR"),
        ("KMP_CORE_SECRETS_POLL_INTERVALL", "KMP_CORE_SECRETS_POLL_INTERVAL"),
        ("KMP_CORE_SECRTS_POLL_INTERVAL", "KMP_CORE_SECRETS_POLL_INTERVAL"),
        ("KMP_CORE_SECRETS_ULR", "KMP_CORE_SECRETS_URL"),
        ("KMP_CORE_SECRET_URL", "KMP_CORE_SECRETS_URL"),
        ("KMP_CORE_SECRETS", "KMP_CORE_SECRETS_URL"),
    ],
)
def test_a_misspelt_variable_names_the_one_that_was_meant(monkeypatch, variable, meant):
    monkeypatch.setenv(variable, "hunter2")
    fault = faults_of(ServiceSettings.load)[variable]
    assert fault.problem == f"is no setting; did you mean {meant}?"
    assert fault.source == "environment"


def test_a_misspelt_variable_in_a_file_is_noticed_too(tmp_path):
    (tmp_path / ".env").write_text("KMP_PROJEKT=skyline\n")
    assert faults_of(ServiceSettings.load)["KMP_PROJEKT"].source == ".env"


def test_a_class_notices_misspelt_names_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("KMP_ACME_POOL_POOLSIZE", "1")
    monkeypatch.setenv("KMP_PROJCT", "x")
    (tmp_path / "kmp.toml").write_text("[settings.acme.pool]\ntimout = '1s'\n")
    faults = faults_of(PoolSettings.load)
    assert set(faults) == {"KMP_ACME_POOL_POOLSIZE", "[settings.acme.pool] timout"}
    assert "[settings.acme.pool] timeout" in faults["[settings.acme.pool] timout"].problem


@pytest.mark.parametrize(
    "variable",
    [
        "KMP_REGION",
        "KMP_X",
        "KMP_TEST_IMAGE_REDIS",
        "KMP_SECRET_DATABASE_PASSWORD",
        "KMP_SECRET_DIR_KEY",
        "KMP_STORAGE_FOO",
        "KMP_ACME_COLOR",
    ],
)
def test_a_variable_that_resembles_nothing_is_somebody_else_s(monkeypatch, variable):
    monkeypatch.setenv(variable, "x")
    ServiceSettings.load()
    PoolSettings.load()


def test_known_variables_of_other_classes_are_no_faults(monkeypatch):
    monkeypatch.setenv("KMP_CORE_SECRETS_TIMEOUT", "3s")
    monkeypatch.setenv("KMP_CORE_SECRETS_URL", "env:")
    monkeypatch.setenv("KMP_MANIFEST", "")
    ServiceSettings.load()


@pytest.mark.parametrize(
    ("toml", "field"),
    [
        ("[settings]\nlog_levl = 'info'\n", "[settings] log_levl"),
        ("[settings.core.secrets]\npoll_intervall = '1s'\n", "[settings.core.secrets] poll_intervall"),
        ("[settings.core.secret]\npoll_interval = '1s'\n", "[settings.core.secret] poll_interval"),
        ("[env.dev.settings]\nprojct = 'a1'\n", "[env.dev.settings] projct"),
    ],
)
def test_a_misspelt_key_of_the_manifest_is_noticed(tmp_path, toml, field):
    (tmp_path / "kmp.toml").write_text(toml)
    fault = faults_of(ServiceSettings.load)[field]
    assert "did you mean [" in fault.problem
    assert fault.source == str(tmp_path / "kmp.toml")


@pytest.mark.parametrize(
    ("toml", "field", "example"),
    [
        ("[settings.acme]\npool = 3\n", "[settings.acme] pool", "[settings.acme.pool]"),
        ("[settings]\nacme = 'hunter2'\n", "[settings] acme", "[settings.acme.pool]"),
        ("[[settings.acme.pool]]\npool_size = 3\n", "[settings.acme] pool", "[settings.acme.pool]"),
        ("[env.dev.settings.acme]\npool = 3\n", "[env.dev.settings.acme] pool", "[env.dev.settings.acme.pool]"),
    ],
)
def test_a_value_where_a_table_is_expected_is_a_fault_of_the_class_below_it(tmp_path, toml, field, example):
    file = tmp_path / "kmp.toml"
    file.write_text(toml)
    assert faults_of(PoolSettings.load) == {field: Fault(field, "must be a table", example, str(file))}


@pytest.mark.parametrize("value", ["3", "'sqlite:'", "true", "[]", "[[1]]"])
@pytest.mark.parametrize(
    ("table", "name"), [("settings.core", "secrets"), ("settings", "core"), ("settings", "storage")]
)
def test_a_service_does_not_start_where_a_value_takes_the_place_of_a_table(tmp_path, table, name, value):
    (tmp_path / "kmp.toml").write_text(f"[{table}]\n{name} = {value}\n")
    fault = faults_of(ServiceSettings.load)[f"[{table}] {name}"]
    assert fault.problem == "must be a table"
    assert str(fault.example).startswith(f"[{table}.{name}")


def test_unknown_tables_of_the_manifest_belong_to_others(tmp_path):
    (tmp_path / "kmp.toml").write_text("[settings.storage.mystore]\nx = 1\n[topics.flights]\npartitions = 3\n")
    ServiceSettings.load()


def test_a_misspelt_argument_names_the_one_that_was_meant():
    assert "did you mean pool_size" in faults_of(lambda: PoolSettings.load(pol_size=1))["pol_size"].problem


def test_a_misspelt_class_keyword_is_refused():
    with pytest.raises(InvalidInput, match="prefx"):

        class Wrong(Settings, prefx="a.b"):  # type: ignore[arg-type]
            pass


def test_a_class_without_a_prefix_is_refused():
    with pytest.raises(InvalidInput, match="prefix"):

        class Wrong(Settings):
            pass


@pytest.mark.parametrize("prefix", ["Storage", "storage-cache", "storage..cache", ".a", "a_b", "a b", "1a"])
def test_a_prefix_that_is_no_path_is_refused(prefix):
    with pytest.raises(InvalidInput, match="prefix"):

        class Wrong(Settings, prefix=prefix):
            pass


def test_settings_are_frozen_and_show_no_secret():
    settings = PoolSettings.load(password="hunter2", url="redis://u:hunter2@host/0")
    assert "hunter2" not in repr(settings) + str(settings) + settings.model_dump_json()
    with pytest.raises(ValueError, match="frozen"):
        settings.pool_size = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["KMP_ENV_FILE", "KMP_SECRETS_DIR", "KMP_MANIFEST"])
@pytest.mark.parametrize("place", ["missing", "~nobody-here/x", "directory", "x\0y"])
def test_a_source_that_cannot_be_read_is_a_fault_beside_the_others(tmp_path, name, place):
    (tmp_path / "directory").mkdir()
    if (name, place) == ("KMP_SECRETS_DIR", "directory"):
        (tmp_path / "directory" / "KMP_PROJECT").mkdir()
    sources = Sources.read({name: place, "KMP_ACME_POOL_POOL_SIZE": "0"})
    with sources.used():
        faults = faults_of(PoolSettings.load)
    assert len(faults) == 2
    assert "KMP_ACME_POOL_POOL_SIZE" in faults


def test_a_line_of_an_env_file_that_is_no_assignment_is_named_by_its_number(tmp_path, caplog):
    (tmp_path / ".env").write_text("KMP_PROJECT=skyline\n\nKMP_ACME 'hunter2\n")
    caplog.set_level(logging.DEBUG)
    (fault,) = faults_of(ServiceSettings.load).values()
    assert "line 3" in fault.problem
    assert "hunter2" not in caplog.text


def test_every_installed_setting_has_a_docstring_and_a_variable_of_its_own():
    seen: dict[str, str] = {}
    for settings_class in installed_classes():
        for name, field in settings_class.model_fields.items():
            variable = settings_class.key(name).variable
            assert field.description, f"{settings_class.__name__}.{name} has no docstring"
            assert variable not in seen, f"{variable} is a setting of {seen[variable]} and {settings_class.__name__}"
            seen[variable] = settings_class.__name__


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:hunter2@host/0", "redis://***@host/0"),
        ("postgres://u:hun/ter2@host/db", "postgres://***@host/db"),
        ("postgres://u:hunter2@x@host/db", "postgres://***@host/db"),
        ("postgres://u:hunter2?x@host/db", "postgres://***@host/db"),
        ("redis:u:hunter2@host", "redis:***@host"),
        ("timescale://host/db?password=hunter2&sslmode=require", "timescale://host/db?password=***&sslmode=require"),
        ("s3://b?aws_secret_access_key=hunter2;x=1", "s3://b?aws_secret_access_key=***;x=1"),
        ("https://host/#access_token=hunter2", "https://host/#access_token=***"),
        ("sqlite:", "sqlite:"),
        ("sqlite:///var/lib/a.db", "sqlite:///var/lib/a.db"),
        ("no url", "no url"),
    ],
)
def test_a_url_is_shown_without_credentials(text, shown):
    assert redact_url(text) == shown
    assert "hunter2" not in f"{ConnectionUrl(text)!r} {ConnectionUrl(text)}"
    assert ConnectionUrl(text).reveal() == text


def test_a_url_may_be_copied_and_leaves_the_process_only_when_revealed():
    url = ConnectionUrl("redis://app:hunter2@cache/0")
    assert copy.copy(url) == copy.deepcopy(url) == url
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="is not pickled") as refused:
            pickle.dumps(url, protocol)
        assert "hunter2" not in str(refused.value)
