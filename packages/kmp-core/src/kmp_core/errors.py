"""Every failure that KMP reports, in one tree, so that one `except` catches exactly what you mean.

    KmpError
    ├── ConfigurationError        what you configured is wrong; lists every fault at once
    │   ├── UnknownScheme         no installed provider answers to the URL's scheme
    │   ├── PluginError           a provider's package failed to load
    │   └── MissingExtra          a driver is not installed; names the installation that adds it
    ├── InvalidInput              a value you passed is wrong: field, fault, example
    ├── Unsupported               this provider cannot do that; names one that can
    ├── NotFound                  the key is not there
    ├── Conflict                  the key is there already, with other content
    ├── AccessDenied              you may not
    │   ├── Unauthenticated       nobody vouches for the caller
    │   └── PermissionDenied      the caller is known and may not do this
    ├── LifecycleError            used before `open`, after `close`, across a fork, or in another event loop
    ├── Corrupt                   stored data is damaged
    └── BackendError              the backend failed; `retryable` and `outcome_unknown` tell what to do
        ├── Unavailable           it does not answer, or refuses for now
        │   ├── PoolExhausted     no connection became free in time
        │   ├── BreakerOpen       it failed too often; not asked again for a while
        │   └── Overloaded        it asks to come back later: `retry_after`
        ├── DeadlineExceeded      the time allowed for the call is over
        └── OutcomeUnknown        the call was sent and nobody knows whether it took effect

Facts are attributes; secrets are never among them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = [
    "AccessDenied",
    "BackendError",
    "BreakerOpen",
    "ConfigurationError",
    "Conflict",
    "Corrupt",
    "DeadlineExceeded",
    "ErrorTable",
    "Fault",
    "InvalidInput",
    "KmpError",
    "LifecycleError",
    "MissingExtra",
    "NotFound",
    "OutcomeUnknown",
    "Overloaded",
    "PermissionDenied",
    "PluginError",
    "PoolExhausted",
    "Unauthenticated",
    "Unavailable",
    "UnknownScheme",
    "Unsupported",
]


class KmpError(Exception):
    """Catch this to catch everything that KMP raises on purpose.

    `retryable` says whether the same call may succeed later; `outcome_unknown` says that the call may have taken
    effect although it failed, so that only an idempotent call may be repeated.
    """

    retryable: bool = False
    outcome_unknown: bool = False

    def __init__(self, message: str, *, project: str | None = None, key: str | None = None) -> None:
        super().__init__(message)
        self.project = project
        self.key = key

    def __reduce__(self) -> tuple[Callable[..., KmpError], tuple[object, ...]]:
        # As it is, without `__init__`, which takes other arguments in each class: an error that cannot be read again
        # would end a whole pool of worker processes.
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[KmpError], arguments: tuple[object, ...], facts: dict[str, object]) -> KmpError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments  # Python's own OSError, of which some are, leaves them out
    error.__dict__.update(facts)
    return error


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong in a configuration: where, what, and a value that would be accepted."""

    field: str
    problem: str
    example: str | None = None
    source: str | None = None

    def __str__(self) -> str:
        text = f"{self.field}: {self.problem}"
        if self.source is not None:
            text += f" (from {self.source})"
        return text + _for_example(text, self.example)


def _for_example(problem: str, example: str | None) -> str:
    if example is None:
        return ""
    return f" For example {example}" if problem.endswith("?") else f"; for example {example}"


class ConfigurationError(KmpError):
    """Lists all that is wrong with the configuration at once, in `faults`, never with a value that may be secret."""

    def __init__(self, *faults: Fault, heading: str = "The configuration is wrong") -> None:
        self.faults = faults
        lines = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(f"{heading}:{lines}")


class UnknownScheme(ConfigurationError):
    """Names the URL's scheme, the schemes that are installed, and the installation that would add the missing one."""


class PluginError(ConfigurationError):
    """Names the plugin that failed to load and the distribution it came from; other plugins go on working."""


class MissingExtra(ConfigurationError, ImportError):
    """Names the module that is missing and the `pip install` that adds it; also an `ImportError`."""

    def __init__(self, module: str, *, install: str) -> None:
        self.install = install
        super().__init__(
            Fault(module, "is not installed", example=f"pip install '{install}'"), heading="A driver is missing"
        )
        self.name = module


class InvalidInput(KmpError):
    """Names the field, what is wrong with it, and a value that would be accepted; nothing was written."""

    def __init__(
        self,
        field: str,
        problem: str,
        *,
        example: str | None = None,
        row: int | None = None,
        project: str | None = None,
        key: str | None = None,
    ) -> None:
        self.field = field
        self.problem = problem
        self.example = example
        self.row = row
        where = field if row is None else f"row {row}, {field}"
        super().__init__(f"{where}: {problem}{_for_example(problem, example)}", project=project, key=key)


class Unsupported(KmpError):
    """Names the ability that this provider lacks and, where there is one, the provider or tier that has it."""

    def __init__(self, ability: str, *, provider: str, instead: str | None = None) -> None:
        self.ability = ability
        self.provider = provider
        self.instead = instead
        hint = "" if instead is None else f"; {instead}"
        super().__init__(f"{provider} does not support {ability}{hint}")


class NotFound(KmpError):
    """Nothing is stored under `key`."""


class Conflict(KmpError):
    """Something else is stored under `key` already; nothing was changed."""


class AccessDenied(KmpError):
    """The caller may not do this."""


class Unauthenticated(AccessDenied):
    """Nobody that we trust vouches for the caller. The message is the same for every reason; `reason` is for logs."""

    def __init__(self, reason: str = "invalid", *, message: str = "The token was refused") -> None:
        self.reason = reason
        super().__init__(message)


class PermissionDenied(AccessDenied):
    """The caller is who they say they are, and may not do this."""


class LifecycleError(KmpError):
    """A resource was used before `open`, after `close`, or in another process or event loop than it was opened in."""


class Corrupt(KmpError):
    """Stored data is damaged. Nothing was deleted; the message names the place and what to do."""


class BackendError(KmpError):
    """A backend failed; `backend` names it."""

    def __init__(
        self,
        message: str,
        *,
        backend: str | None = None,
        project: str | None = None,
        key: str | None = None,
        outcome_unknown: bool = False,
    ) -> None:
        super().__init__(message, project=project, key=key)
        self.backend = backend
        self.outcome_unknown = outcome_unknown


class Unavailable(BackendError):
    """The backend does not answer, or refuses for now. The same call may succeed later."""

    retryable = True


class PoolExhausted(Unavailable):
    """No connection became free within the time allowed: raise the pool size or lower the concurrency."""


class BreakerOpen(Unavailable):
    """The backend failed too often and is left alone until `retry_after` seconds have passed."""

    def __init__(self, message: str, *, retry_after: float, backend: str | None = None) -> None:
        super().__init__(message, backend=backend)
        self.retry_after = retry_after


class Overloaded(Unavailable):
    """The other side has too much to do and asks to come back after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float, backend: str | None = None) -> None:
        super().__init__(message, backend=backend)
        self.retry_after = retry_after


class DeadlineExceeded(BackendError, TimeoutError):
    """The time allowed for the call is over; `outcome_unknown` tells whether it may still have taken effect."""

    retryable = True


class OutcomeUnknown(BackendError):
    """The call was sent and its answer never came: it may or may not have taken effect."""

    def __init__(self, message: str, *, backend: str | None = None, project: str | None = None) -> None:
        super().__init__(message, backend=backend, project=project, outcome_unknown=True)


Translation = type[KmpError] | Callable[[BaseException], KmpError | None]


class ErrorTable:
    """Turns a driver's exceptions into ours by class, so that user code never catches a driver's type.

    The nearest ancestor in the raised class's `__mro__` wins, so the order of the table never matters. An entry is a
    class of ours, called with the driver's message, or a function that looks at codes and returns the error or None
    (None leaves the exception as it is). Cancellation is never translated.

    >>> table = ErrorTable({OSError: Unavailable, FileNotFoundError: NotFound})
    >>> type(table.translate(FileNotFoundError("gone"))).__name__
    'NotFound'
    """

    def __init__(self, entries: Mapping[type[Exception], Translation]) -> None:
        self._entries = dict(entries)

    def translate(self, error: BaseException) -> KmpError | None:
        """The error of ours that stands for `error`, or None where the table has no entry for it."""
        if isinstance(error, KmpError):
            return None
        for ancestor in type(error).__mro__:
            entry = self._entries.get(ancestor)
            if entry is None:
                continue
            return entry(str(error)) if isinstance(entry, type) else entry(error)
        return None

    @contextmanager
    def translating(self) -> Iterator[None]:
        """Run a block in which the driver's exceptions come out as ours, each with the driver's as its cause."""
        try:
            yield
        except Exception as error:
            translated = self.translate(error)
            if translated is None:
                raise
            raise translated from error
