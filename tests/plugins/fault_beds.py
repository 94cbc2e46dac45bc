"""The servers of the test bed as handles of the fault stage, and the address of each as a provider's URL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import testbed


@dataclass
class Handle:
    """What the fault stage does to a server. `after_restart` gives back what the server does not keep."""

    server: testbed.Server
    after_restart: Callable[[], None] = lambda: None
    entrance: testbed.Server | None = None
    """Who is asked where the server is, where that is somebody else."""

    @property
    def host(self) -> str:
        return testbed.LOOPBACK

    @property
    def port(self) -> int:
        return (self.entrance or self.server).port

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.unpause()

    def kill(self) -> None:
        self.server.kill()

    def restart(self) -> None:
        self.server.start_again()
        self.server.wait_ready()
        self.after_restart()
