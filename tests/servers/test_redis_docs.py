"""The how-to page's code does against the real server what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import testbed

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "redis.md"


async def test_the_page_runs(redis_server: testbed.Server, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    changes = {
        "default:secret@cache.internal:6379": f"default:{redis_server.password}@{redis_server.address}",
        '"redis://cache.internal:6379"': f'"redis://skyline:" + SECRET + "@{redis_server.address}"',
        "...  # hand": "global SECRET; SECRET = password.reveal()  # hand",
    }
    for written, meant in changes.items():
        assert written in code
        code = code.replace(written, meant)
    page: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, str(PAGE), "exec"), page)
    try:
        await page["make_project"]()
        await page["use_cache"]()
        assert "fencing token" in capsys.readouterr().out
    finally:
        await page["remove_project"]()
