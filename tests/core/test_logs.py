"""Log lines: uniform, with their context, without secrets."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import structlog
from pydantic import BaseModel, Secret, SecretBytes, SecretStr

from kmp_core import logs
from kmp_core.redaction import names_secret, redact, redact_text


class Lines(io.StringIO):
    def __init__(self, *, terminal: bool = False) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal

    def all(self) -> list[dict]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def last(self) -> dict:
        return self.all()[-1]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logs._silence(())
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def lines() -> Lines:
    stream = Lines()
    logs.configure(project="acme", service="delays", environment="prod", stream=stream, level="debug")
    return stream


def test_a_line_is_json_with_its_facts_and_says_whose_it_is(lines):
    logs.get_logger("app").info("stored", rows=3)
    line = lines.last()
    assert line | {"event": "stored", "rows": 3, "level": "info", "logger": "app"} == line
    assert (line["project"], line["service"], line["environment"]) == ("acme", "delays", "prod")
    assert line["timestamp"].endswith("Z")


def test_a_line_of_the_standard_library_looks_the_same(lines):
    logging.getLogger("driver").warning("lost %s of %d", "one", 3, extra={"rows": 7})
    line = lines.last()
    assert line | {"event": "lost one of 3", "level": "warning", "logger": "driver", "rows": 7} == line
    assert line["project"] == "acme"


def test_a_line_inside_a_span_names_the_trace(lines):
    from opentelemetry import trace

    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False)
    with trace.use_span(trace.NonRecordingSpan(context)):
        logs.get_logger().info("inside")
        logging.getLogger("driver").info("inside too")
    logs.get_logger().info("outside")
    for line in lines.all()[:2]:
        assert (line["trace_id"], line["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert "trace_id" not in lines.last()


def test_context_variables_are_in_every_line(lines):
    structlog.contextvars.bind_contextvars(request="r1")
    logs.get_logger().info("ours")
    logging.getLogger("driver").info("theirs")
    assert [line["request"] for line in lines.all()] == ["r1", "r1"]


def test_what_is_below_the_level_is_not_written():
    stream = Lines()
    logs.configure(project="acme", service="delays", environment="prod", stream=stream, level="warning")
    logs.get_logger().info("no")
    logging.getLogger("driver").info("no")
    assert stream.getvalue() == ""


def test_libraries_that_tell_of_every_call_are_quiet_unless_they_are_wanted(lines):
    httpx = logging.getLogger("httpx")
    httpx.info("HTTP Request: GET https://x/?code=1")
    assert lines.getvalue() == ""
    httpx.warning("odd")
    assert lines.last()["event"] == "odd"
    logs.configure(project="acme", service="delays", environment="prod", stream=lines, quiet=())
    httpx.info("HTTP Request: GET https://x")
    assert lines.last()["event"] == "HTTP Request: GET https://x"


def test_a_level_that_the_program_gave_a_quiet_library_stays(monkeypatch):
    stream = Lines()
    monkeypatch.setattr(logging.getLogger("httpx"), "level", logging.DEBUG)
    logs.configure(project="acme", service="delays", environment="prod", stream=stream)
    logging.getLogger("httpx").info("HTTP Request: GET https://x")
    assert stream.all()[-1]["event"] == "HTTP Request: GET https://x"


def test_a_terminal_gets_lines_for_people():
    stream = Lines(terminal=True)
    logs.configure(project="acme", service="delays", environment="dev", stream=stream)
    logs.get_logger().info("stored", rows=3, password="hunter2")
    text = stream.getvalue()
    assert "stored" in text
    assert not text.startswith("{")
    assert "hunter2" not in text


def test_configuring_again_replaces_and_doubles_no_line(lines):
    second = Lines()
    logs.configure(project="acme2", service="delays", environment="prod", stream=second)
    logs.get_logger().info("once")
    assert lines.getvalue() == ""
    assert [line["project"] for line in second.all()] == ["acme2"]


def test_a_servers_own_handlers_give_way(lines):
    server = logging.getLogger("uvicorn.access")
    stream = io.StringIO()
    server.addHandler(logging.StreamHandler(stream))
    server.propagate = False
    logs.configure(project="acme", service="delays", environment="prod", stream=lines)
    server.info("GET /")
    assert stream.getvalue() == ""
    assert lines.last()["event"] == "GET /"


def test_a_server_that_was_told_not_to_log_requests_stays_silent(lines, monkeypatch):
    server = logging.getLogger("gunicorn.access")
    server.handlers.clear()
    monkeypatch.setattr(server, "propagate", False)  # what uvicorn's access_log=False does
    logs.configure(project="acme", service="delays", environment="prod", stream=lines)
    server.info("GET /")
    assert lines.getvalue() == ""


class Login(BaseModel):
    user: str
    password: str
    pin: SecretStr


@dataclass
class Connection:
    host: str
    password: str


class Pair(NamedTuple):
    user: str
    password: str


SECRET = "hunter2hunter2"
QUOTES = f"it's \"{SECRET}"
JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"
KEY = f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}\n-----END EC PRIVATE KEY-----"


@pytest.mark.parametrize(
    "facts",
    [
        {"value": SecretStr(SECRET)},
        {"value": SecretBytes(SECRET.encode())},
        {"value": Secret[str](SECRET)},
        {"password": SECRET},
        {"Authorization": f"Bearer {SECRET}"},
        {"accessToken": SECRET},
        {"X-Api-Key": SECRET},
        {"client_secret": SECRET.encode()},
        {"nested": {"list": [{"db_password": SECRET}]}},
        {"headers": {"Set-Cookie": SECRET}},
        {"url": f"postgres://app:{SECRET}@db/x"},
        {"url": f"postgres://app:pa@ss/{SECRET}@db/x"},
        {"note": f"see redis://:{SECRET}@cache/0 and amqp://u:{SECRET}@q"},
        {"note": f"Authorization: Bearer {SECRET}"},
        {"note": f"host=db password={SECRET} user=app"},
        {"note": f'{{"password": "{SECRET}"}}'},
        {"note": KEY},
        {"model": Login(user="ada", password=SECRET, pin=SecretStr(SECRET))},
        {"error": ValueError(f"cannot reach redis://:{SECRET}@cache")},
        {"blob": SECRET.encode()},
        {"dataclass": {"nested": Connection("db", QUOTES)}},
        {"named": Pair("ada", SECRET)},
        {"parts": urlsplit(f"redis://app:{SECRET}@cache/0")},
        {f"redis://app:{SECRET}@cache": "a name that is an address"},
        {"headers": [("x-api-key", SECRET), (b"cookie", SECRET.encode())]},
        {"note": repr([(b"x-api-key", SECRET.encode()), ("password", QUOTES)])},
        {"note": repr({b"password": SECRET.encode()})},
        {"note": repr({"a": 1, "password": QUOTES}.items())},
        {"note": json.dumps({"password": QUOTES})},
        {"note": json.dumps(json.dumps({"password": SECRET}))},
        {"note": f"https://bucket/x?X-Amz-Signature={SECRET}&sig={SECRET}"},
        {"note": f"Cookie: a=b; session={SECRET}"},
        {"note": f"Authorization: Token {SECRET}"},
        {"note": f'cut off in the middle: password="{SECRET}'},
        {"error": ValueError("password", SECRET)},
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_no_secret_is_written(facts, terminal):
    stream = Lines(terminal=terminal)
    logs.configure(project="acme", service="delays", environment="prod", stream=stream)
    logs.get_logger().info("a line", **facts)
    logging.getLogger("driver").warning("a line", extra=dict(facts))
    assert stream.getvalue().count("a line") == 2
    assert SECRET not in stream.getvalue()


def test_handlers_of_others_get_no_secret_either(lines):
    class Reporter(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            reported.append(f"{record.msg} {record.args}")

    reported: list[str] = []
    logging.getLogger().addHandler(Reporter())
    logs.get_logger().info("a line", password=SECRET, nested={"token": SECRET})
    assert len(reported) == 1
    assert SECRET not in reported[0]


def test_tokens_are_known_by_their_looks():
    assert JWT not in redact_text(f"refused {JWT} for good")
    assert redact_text(f"refused {JWT} for good") == "refused *** for good"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", ["a.a-", "a.b.", "a://", "eyJ-", "token ", 'password="', "Bearer ", "token\\"])
def test_a_long_line_of_a_stranger_does_not_stop_the_process(piece):
    assert redact_text(piece * 20_000 + "://x@y eyJ.")


def test_the_message_itself_is_redacted(lines):
    logs.get_logger().info(f"connecting to redis://:{SECRET}@cache")
    logging.getLogger("driver").info("using %s", f"redis://:{SECRET}@cache")
    assert SECRET not in lines.getvalue()
    assert "redis://***@cache" in lines.getvalue()


def test_an_exception_is_rendered_without_local_variables_and_without_secrets(lines):
    def fail():
        hidden = "local-" + "variable"
        raise ValueError(f"cannot reach redis://:{SECRET}@cache {len(hidden)}")

    for logger in (logs.get_logger(), logging.getLogger("driver")):
        try:
            fail()
        except ValueError:
            logger.exception("failed")
        line = lines.last()
        assert "Traceback" in line["exception"]
        assert "in fail" in line["exception"]
        assert "local-variable" not in line["exception"]
        assert SECRET not in line["exception"]


@pytest.mark.parametrize("name", ["key", "rows", "tokenizer", "author", "keyboard", "passage", "event"])
def test_ordinary_names_are_kept(name):
    assert not names_secret(name)
    assert redact({name: "value"}) == {name: "value"}


def test_plain_values_pass_unchanged():
    facts = {"a": 1, "b": 2.5, "c": None, "d": True, "e": "mail ada@example.com", "f": "https://host/path?x=1"}
    assert redact(facts) == facts
    assert redact({"password": None}) == {"password": None}


def test_a_cycle_and_a_broken_repr_do_not_lose_the_line(lines):
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    cycle: dict = {}
    cycle["self"] = cycle
    logs.get_logger().info("still here", cycle=cycle, broken=Broken())
    assert lines.last()["event"] == "still here"


def test_a_service_configures_logging_unless_the_program_did(tmp_path):
    code = """
import asyncio, logging, sys
from kmp_core import Service
if sys.argv[1] == "own":
    logging.basicConfig(format="MINE %(message)s", level="INFO")
async def main():
    async with Service("delays", project="acme"):
        logging.getLogger("app").info("hello")
asyncio.run(main())
"""
    shown = {}
    for how in ("own", "ours"):
        done = subprocess.run(
            [sys.executable, "-c", code, how],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": ""},
        )
        shown[how] = done.stderr
    assert shown["own"] == "MINE hello\n"
    assert json.loads(shown["ours"]) | {"event": "hello", "project": "acme", "service": "delays"} == json.loads(
        shown["ours"]
    )
