"""Log lines that an operator can use: JSON in production, readable on a terminal, and never with a secret.

    log = get_logger(__name__)
    log.info("flight stored", flight="UA1545", password=secret)   # the password becomes ***

Every line, also one of the standard library's `logging`, says project, service, environment and, inside a span, its
`trace_id` and `span_id`. `Service` configures this when it opens, unless the program has configured `logging` itself.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection, Mapping, MutableMapping
from typing import Any, Literal, TextIO

import structlog

from kmp_core.redaction import redact, redact_text

__all__ = ["QUIET", "LogFormat", "configure", "configured", "get_logger"]

LogFormat = Literal["auto", "json", "console"]
EventDict = MutableMapping[str, Any]

QUIET = ("httpcore", "httpx")
"""Libraries that write a line for every call of theirs, which traces and metrics tell better."""

_quieted: set[str] = set()
_OWN_HANDLERS = ("uvicorn", "uvicorn.error", "uvicorn.access", "gunicorn.error", "gunicorn.access")


class _Handler(logging.StreamHandler[TextIO]):
    """Marks what `configure` installed, so that configuring again replaces it."""


def get_logger(name: str | None = None) -> structlog.stdlib.BoundLogger:
    """A logger that takes facts as keywords: `log.info("stored", rows=3)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def configured() -> bool:
    """Whether somebody else has given the process a log handler already."""
    return any(not isinstance(handler, _Handler) for handler in logging.getLogger().handlers)


def configure(
    *,
    project: str,
    service: str,
    environment: str,
    format: LogFormat = "auto",  # noqa: A002 - reads best at the call
    level: str = "info",
    quiet: Collection[str] = QUIET,
    stream: TextIO | None = None,
) -> None:
    """Configure structlog and `logging` for the process. A second call replaces the first one's work.

    Loggers in `quiet` write warnings and worse only, unless the program has given them a level itself.

    Servers that bring log handlers of their own (uvicorn, gunicorn) have them taken away, so that their lines look
    like all others.
    """
    target: TextIO = stream or sys.stderr
    as_json = format == "json" or (format == "auto" and not target.isatty())
    facts = {"project": project, "service": service, "environment": environment}
    handler = _Handler(target)
    handler.setFormatter(_formatter(facts, as_json=as_json, colors=target.isatty()))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    _silence(quiet)
    for name in _OWN_HANDLERS:
        logger = logging.getLogger(name)
        if not logger.handlers and not logger.propagate:
            continue  # told to be silent, as by uvicorn's `access_log=False`
        logger.handlers.clear()
        logger.propagate = True
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            _redact,  # here already: handlers of others, such as a crash reporter's, get the facts before our formatter
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _silence(names: Collection[str]) -> None:
    for name in _quieted:
        logging.getLogger(name).setLevel(logging.NOTSET)
    _quieted.clear()
    for name in names:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)
            _quieted.add(name)


def _formatter(facts: Mapping[str, str], *, as_json: bool, colors: bool) -> logging.Formatter:
    def add_facts(_: Any, __: str, event: EventDict) -> EventDict:
        return {**facts, **event}

    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        add_facts,
    ]
    ends: list[Any] = (
        [_render_exception, structlog.processors.JSONRenderer(ensure_ascii=False)]
        if as_json
        else [
            _render_exception,
            structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[structlog.contextvars.merge_contextvars, structlog.stdlib.ExtraAdder(), _once, _redact],
        processors=[*shared, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ends],
    )


_traceback = structlog.processors.ExceptionRenderer()
"""Python's own traceback: no frame shows its local variables, which may be secrets."""


def _render_exception(logger: Any, name: str, event: EventDict) -> EventDict:
    rendered = _traceback(logger, name, event)
    for key in ("exception", "stack"):
        if key in rendered:
            rendered[key] = redact_text(str(rendered[key]))
    return rendered


def _add_trace(_: Any, __: str, event: EventDict) -> EventDict:
    # Who has not imported OpenTelemetry has no span.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            event["trace_id"] = f"{context.trace_id:032x}"
            event["span_id"] = f"{context.span_id:016x}"
    return event


def _once(_: Any, __: str, event: EventDict) -> EventDict:
    # What another handler's formatter left in the record is no fact of the program.
    for key in ("message", "asctime"):
        event.pop(key, None)
    return event


def _redact(_: Any, __: str, event: EventDict) -> EventDict:
    # Names that begin so belong to structlog and logging.
    own = {key: event.pop(key) for key in ("exc_info", "_record", "_from_structlog") if key in event}
    clean: EventDict = redact(event)
    return {**clean, "event": redact_text(str(event.get("event", ""))), **own}
