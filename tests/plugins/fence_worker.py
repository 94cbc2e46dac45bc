"""Runs the `python` fences of one page in a process of its own: one namespace, new classes, warnings as errors.

Reads a job per line from standard input, and answers each with a line: an empty text, or the traceback.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import json
import os
import sys
import traceback
from typing import Any


def execute(source: str, path: str, line: int, namespace: dict[str, Any]) -> str:
    """Run one fence, top-level `await` included; what went wrong, with the page's line numbers."""
    try:
        code = compile("\n" * line + source, path, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        result = eval(code, namespace)
        if inspect.iscoroutine(result):
            asyncio.run(result)
    except Exception:
        return traceback.format_exc(limit=-6)
    return ""


def main() -> None:
    # What the page prints goes to standard error, which is not the answer.
    answers = os.dup(1)
    os.dup2(2, 1)
    sys.path.insert(0, "")
    namespace = sys.modules["__main__"].__dict__
    namespace["__name__"] = "page"
    sys.modules["page"] = sys.modules["__main__"]
    for job in sys.stdin:
        source, path, line = json.loads(job)
        os.write(answers, json.dumps(execute(source, path, line, namespace)).encode() + b"\n")


if __name__ == "__main__":
    main()
