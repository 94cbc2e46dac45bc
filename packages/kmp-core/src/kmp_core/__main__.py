"""`python -m kmp_core settings`: what can be set, what is set, by what, and what is wrong with it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence

from kmp_core.errors import ConfigurationError, KmpError

__all__ = ["main"]

_DESCRIPTION = "Show every setting of the installed packages, its value, and where the value comes from."
_EPILOG = """\
Secrets and credentials are masked. Exit code: 0 when all settings are right, 1 when some are wrong (told on standard
error), 2 when the command itself is."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kmp_core", description="Tools of kmp-core.")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    settings = commands.add_parser("settings", help="show every setting", description=_DESCRIPTION, epilog=_EPILOG)
    settings.add_argument("prefix", nargs="?", default="", help="only those under this prefix, such as storage.cache")
    settings.add_argument("--environment", metavar="NAME", help="look as that environment does, such as prod")
    form = settings.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print the reference page, without the values set here")
    return parser


def _settings(arguments: argparse.Namespace) -> int:
    from kmp_core.settings import render
    from kmp_core.settings.report import report as collect
    from kmp_core.settings.sources import Sources

    # The reference page is the same on every machine.
    sources = Sources(()) if arguments.markdown else Sources.read(environment=arguments.environment)
    report = collect(sources).under(arguments.prefix)
    if not report.sections:
        sys.stderr.write(f"No setting begins with {arguments.prefix!r}; for example storage.cache\n")
        return 2
    if arguments.json:
        text = render.as_json(report)
    elif arguments.markdown:
        text = render.as_markdown(report)
    else:
        text = render.as_table(report, shutil.get_terminal_size((120, 24)).columns)
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()
    if report.faults:
        sys.stderr.write(f"{ConfigurationError(*report.faults)}\n")
    return 1 if report.faults else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parsed = _parser().parse_args(arguments)
    try:
        return _settings(parsed)
    except KmpError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except BrokenPipeError:  # `| head` has seen enough; nothing more may be written, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


if __name__ == "__main__":
    sys.exit(main())
