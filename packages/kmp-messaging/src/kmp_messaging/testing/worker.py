"""The program that `Worker` runs. Modes: what the handler does after it has noted the event.

`note`     nothing
`hang`     waits for ever: the effect is done, the commit is not
`fail`     raises
`die`      kills its process, at number 13
`slow`     sleeps a little
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kmp_messaging.envelope import metadata_of
from kmp_messaging.testing.samples import Noted

__all__ = ["main"]


async def main(request: dict[str, Any]) -> None:
    """Handle events until SIGTERM, then drain and close."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    module, _, name = request["factory"].partition(":")
    factory = getattr(importlib.import_module(module), name)
    effects = os.open(request["effects"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(what: str, event: Noted) -> None:
        line = {"process": os.getpid(), "what": what, "who": event.who, "number": event.number}
        line["attempt"] = metadata_of(event).attempt
        os.write(effects, json.dumps(line).encode() + b"\n")

    async def handle(event: Noted) -> None:
        note("begun", event)
        mode = request["mode"]
        if mode == "hang":
            await asyncio.Event().wait()
        if mode == "fail":
            raise ValueError("as asked")
        if mode == "die" and event.number == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if mode == "slow":
            await asyncio.sleep(0.005)
        note("done", event)

    async def handle_all(events: Sequence[Noted]) -> None:
        for event in events:
            await handle(event)

    arguments = {key: Path(value) if key == "directory" else value for key, value in request["arguments"].items()}
    async with factory(**arguments) as bus:
        options = {"group": request["group"], "retries": request["retries"]}
        if request["size"] is None:
            bus.subscribe(Noted, handle, **options)
        else:
            bus.subscribe_batch(Noted, handle_all, **options, size=request["size"])
        await bus.start()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        await stop.wait()
        await bus.drain()
    os.close(effects)


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
