"""The page on testing a provider: its two suites run against the real server."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import testbed
from kmp_storage.redis.provisioning import RedisProvisioner

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "test-your-provider.md"


def test_the_pages_suites_run(redis_server: testbed.Server, tmp_path: Path) -> None:
    found = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert [name for name, _ in found] == ["test_my_cache.py", "test_my_leaks.py"]
    name = redis_server.container.get_wrapped_container().name
    written = '"my-redis", 6379, "secret"'
    assert written in found[0][1]
    for file, code in found:
        meant = f'"{name}", {redis_server.port}, "{redis_server.password}"'
        (tmp_path / file).write_text(code.replace(written, meant))
    # What takes long, or wants a server that keeps what it acknowledged, runs over each of our providers.
    long = "not wrong_caller and not thousand and not survives"
    command = [*(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", long), str(tmp_path)]
    try:
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    finally:
        asyncio.run(remove_what_the_page_provisions(redis_server))
    assert run.returncode == 0, run.stdout + run.stderr
    assert re.search(r"\b(1[0-9]|2[0-9]) passed", run.stdout), run.stdout


async def remove_what_the_page_provisions(server: testbed.Server) -> None:
    async with RedisProvisioner(f"redis://default:{server.password}@{server.address}") as operator:
        for project in ("acme", "acme2"):
            await operator.deprovision(project, force=True)
