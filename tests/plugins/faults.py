"""A proxy before a server whose connections can be slowed, cut and swallowed, by toxiproxy.

with proxies.before(server) as proxy:
    store = SomeStore(proxy.url_port)
    proxy.black_hole()      # connections stay open, nothing comes back
    proxy.heal()
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import httpx
import images

import testbed

Direction = Literal["upstream", "downstream"]


class Proxies:
    """One toxiproxy on the loopback interface, and the proxies that it runs."""

    def __init__(self) -> None:
        self._port = testbed.free_port()
        self._container: Any = None
        self._count = itertools.count()
        self._api = httpx.Client(base_url=f"http://{testbed.LOOPBACK}:{self._port}", timeout=5)

    def start(self) -> None:
        from testcontainers.core.container import DockerContainer

        # On the host's own network, so that it reaches what is published on 127.0.0.1 and listens nowhere else.
        command = f"-host {testbed.LOOPBACK} -port {self._port}"
        container = DockerContainer(images.have("toxiproxy"), command=command)
        container.with_kwargs(
            labels={testbed.LABEL: str(os.getpid())}, network_mode="host", entrypoint=["toxiproxy-server"]
        )
        self._container = container.start()
        testbed.until(lambda: self._api.get("/version").raise_for_status(), "toxiproxy")

    def stop(self) -> None:
        self._api.close()
        if self._container is not None:
            testbed.remove(self._container)

    @contextmanager
    def before(self, server: testbed.Server) -> Iterator[Proxy]:
        """A proxy before one server, removed at the end with all its connections."""
        proxy = Proxy(self._api, f"proxy-{next(self._count)}", testbed.free_port(), server.address)
        try:
            yield proxy
        finally:
            proxy.remove()


class Proxy:
    """One way to a server. Connect to `127.0.0.1:port`."""

    def __init__(self, api: httpx.Client, name: str, port: int, upstream: str) -> None:
        self.port = port
        self._api = api
        self._path = f"/proxies/{name}"
        self._toxics = itertools.count()
        body = {"name": name, "listen": f"{testbed.LOOPBACK}:{port}", "upstream": upstream, "enabled": True}
        api.post("/proxies", json=body).raise_for_status()

    def slow(self, milliseconds: int, *, jitter: int = 0, direction: Direction = "downstream") -> None:
        """Delay every chunk."""
        self._add("latency", direction, latency=milliseconds, jitter=jitter)

    def black_hole(self, *, direction: Direction = "downstream") -> None:
        """Swallow everything; connections stay open, new ones are accepted."""
        self._add("timeout", direction, timeout=0)

    def cut(self) -> None:
        """Cut every connection and refuse new ones, until `heal`."""
        self._api.post(self._path, json={"enabled": False}).raise_for_status()

    def heal(self) -> None:
        """Be a plain way again. Connections that met a black hole are cut."""
        for toxic in self._api.get(f"{self._path}/toxics").json():
            self._api.delete(f"{self._path}/toxics/{toxic['name']}").raise_for_status()
        self._api.post(self._path, json={"enabled": True}).raise_for_status()

    def remove(self) -> None:
        self._api.delete(self._path).raise_for_status()

    def _add(self, kind: str, direction: Direction, **attributes: int) -> None:
        body = {"name": f"toxic-{next(self._toxics)}", "type": kind, "stream": direction, "attributes": attributes}
        self._api.post(f"{self._path}/toxics", json=body).raise_for_status()
