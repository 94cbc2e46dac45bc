"""The authority, hosted by the launcher: it registers the three services, and each gets its own credential alone."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn

from kmp_core.tokens.authority import DevelopmentAuthority
from kmp_core.tokens.authority_app import authority_app
from skyline.options import Options
from skyline.places import Places
from skyline.state import State, write_private

__all__ = ["Office", "open_office"]

_SECRET = "KMP_SKYLINE_CLIENT_SECRET"  # noqa: S105 - the name of a variable
_GIVEN = "KMP_SKYLINE_GIVEN_TOKEN"
_TRUST_DOMAIN = "kmp.local"
_STORING = ("delays", "tower")  # `departures` opens no store, so it is told of none


class Office:
    """Gives each service its surroundings: settings as variables, the secret as a file of its own."""

    def __init__(
        self, options: Options, state: State, authority: DevelopmentAuthority, port: int, places: Places | None
    ) -> None:
        self._state = state
        self._places = places
        self._authority = authority
        write_private(state.keys, json.dumps(authority.jwks()))
        self._common = {
            "KMP_DIRECTORY": str(state.directory),
            "KMP_SKYLINE_AUTHORITY": authority.issuer,
            "KMP_SKYLINE_TRUST_DOMAIN": authority.trust_domain,
            "KMP_SKYLINE_KEYS": str(state.keys),
            "KMP_SKYLINE_DELAYS": f"http://127.0.0.1:{port}",
        }
        self._own = {"delays": {"KMP_SKYLINE_PORT": str(port)}}
        if options.limit is not None:
            self._own["departures"] = {"KMP_SKYLINE_LIMIT": str(options.limit)}
        if places is not None:
            self._own["tower"] = {"KMP_SKYLINE_FOREIGN_GRAPH": places.foreign_graph}

    def surroundings(self, project: str, service: str, *, may_call: str | None) -> dict[str, str]:
        """Register a service, and return the variables that it is started with."""
        credential = self._authority.register(project, service, audiences=[may_call] if may_call else [])
        self._state.write_secret(service, _SECRET, credential.secret.get_secret_value())
        if project != "skyline":
            # As if somebody had registered it wrongly: `delays` itself has to see that this is not its project.
            token = self._authority.issue(project=project, service=service, audience="delays")
            self._state.write_secret(service, _GIVEN, token)
        if self._places is not None and service in _STORING:
            for variable, url in self._places.of[project].items():
                self._state.write_secret(service, variable, url.reveal())
        return {
            **self._common,
            **self._own.get(service, {}),
            "KMP_PROJECT": project,
            "KMP_SERVICE": service,
            "KMP_SECRETS_DIR": str(self._state.credentials(service)),
            "KMP_SKYLINE_CLIENT_ID": credential.client_id,
        }


@contextmanager
def open_office(options: Options, state: State, places: Places | None) -> Generator[Office, None, None]:
    """Serve the authority on a free port of the loopback address while the block runs."""
    port = free_port() if options.port is None else options.port
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        authority = DevelopmentAuthority(issuer=address, trust_domain=_TRUST_DOMAIN, ttl="10m", environment="dev")
        config = uvicorn.Config(authority_app(authority), log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        # In a thread, where uvicorn leaves the signals to the launcher.
        thread = threading.Thread(target=server.run, args=([listener],), name="authority", daemon=True)
        thread.start()
        try:
            yield Office(options, state, authority, port, places)
        finally:
            server.should_exit = True
            thread.join(timeout=5)


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number: int = listener.getsockname()[1]
        return number
