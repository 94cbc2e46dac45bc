"""The service `tower` of project `harbour`: a neighbour on the same machine, who tries to get at skyline's flights.

It is a real service with a credential of its own, and knows where everything is. Each attempt is logged with what
answered it: no token (the authority), the service, a server, or the SDK's own guard; or nobody, and that would be a
defect.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any

import httpx

import kmp_core
from kmp_core import InvalidInput, KmpError, Service, deadline
from kmp_core.errors import AccessDenied
from kmp_core.http import ClientCredentials
from kmp_core.logs import get_logger
from kmp_core.tokens.signing import SigningKey
from kmp_messaging.embedded import SqliteBus
from kmp_storage import Bucket
from kmp_storage.embedded.bucket import FileBucket
from kmp_storage.embedded.cache import SqliteCache
from kmp_storage.embedded.graph import SqliteGraphStore
from kmp_storage.embedded.timeseries import SqliteTimeSeriesStore
from skyline.settings import SkylineSettings, StoreUrls

OWN_AUDIENCE = "beacon"

log = get_logger(__name__)


def report(what: str, refused_by: str | None, answer: str) -> None:
    """Tell of one attempt, with the paths as they are seen from the directory of both projects."""
    here = f"{Path.cwd()}/"
    log.info("attempt", what=what.replace(here, ""), refused_by=refused_by, answer=answer.replace(here, ""))


async def guarded(what: str, attempt: Callable[[], Awaitable[object]]) -> None:
    """Try something that the SDK's own guard has to refuse."""
    try:
        await attempt()
    except (AccessDenied, InvalidInput) as error:
        report(what, "guard", f"{type(error).__name__}: {error}")
    except KmpError as error:
        report(what, None, f"not refused, but failed: {type(error).__name__}: {error}")
    else:
        report(what, None, "it worked")


def cases(project: Path) -> Iterator[tuple[str, Path, AbstractAsyncContextManager[object]]]:
    """Every store of skyline, opened as the project that this service really is."""
    files = {name: project / f"{name}.db" for name in ("timeseries", "graph", "cache")}
    url = {name: f"sqlite:{file}" for name, file in files.items()}
    yield "time series", files["timeseries"], SqliteTimeSeriesStore(url["timeseries"], project="harbour")
    yield "graph", files["graph"], SqliteGraphStore(url["graph"], project="harbour")
    yield "cache", files["cache"], SqliteCache(url["cache"], project="harbour")
    yield "bucket", project / "bucket", FileBucket(f"file:{project / 'bucket'}", project="harbour")
    yield from events(project)


def events(project: Path) -> Iterator[tuple[str, Path, AbstractAsyncContextManager[object]]]:
    """Skyline's events, which are embedded wherever the stores are."""
    file = project / "bus.db"
    yield "event bus", file, SqliteBus(f"sqlite:{file}", project="harbour")


async def patiently(call: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
    """Call again while `delays` is away: a service that is down has refused nothing."""
    async with deadline("60s", what="waiting for delays"):
        while True:
            try:
                return await call()
            except httpx.TransportError:
                await asyncio.sleep(0.2)


async def try_the_authority(settings: SkylineSettings) -> str:
    """Ask for a token for `delays`; return the one for its own audience, which it may have."""
    what = "asks the authority for a token for delays"
    async with ClientCredentials(
        f"{settings.authority}/token", client_id=settings.client_id, secret=settings.client_secret
    ) as tokens:
        own = await tokens.token(OWN_AUDIENCE)
        try:
            await tokens.token("delays")
        except AccessDenied as error:
            report(what, "token", f"{type(error).__name__}: {error}")
        else:
            report(what, None, "it got one")
    return own


async def try_the_service(settings: SkylineSettings, own: str) -> None:
    """Call `delays` with everything that could pass for a token."""
    async with httpx.AsyncClient(base_url=settings.delays, timeout=30, trust_env=False) as delays:

        async def call(what: str, token: str | None) -> None:
            headers = {} if token is None else {"authorization": f"Bearer {token}"}
            response = await patiently(partial(delays.get, "/progress", headers=headers))
            refused = response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)
            answer = f"{response.status_code} {response.reason_phrase}"
            report(what, "service" if refused else None, answer)

        await call("calls delays without a token", None)
        await call("calls delays with its own token, which is for beacon", own)
        for what, token in forgeries(own, settings):
            await call(f"calls delays with {what}", token)
        given = settings.given_token.get_secret_value()
        await call("calls delays with a valid token for delays, issued to tower by mistake", given)


def forgeries(own: str, settings: SkylineSettings) -> Iterator[tuple[str, str]]:
    """Tokens that say what they are not entitled to say, made from a real one."""
    header, payload, signature = own.split(".")
    claims = _decode(payload) | {
        "aud": "delays",
        "sub": f"spiffe://{settings.trust_domain}/ns/skyline/sa/departures",
        "client_id": f"spiffe://{settings.trust_domain}/ns/skyline/sa/departures",
    }
    public = settings.public_keys()["keys"][0]
    edited = _encode(claims)
    yield "its own token, edited to be one of departures", f"{header}.{edited}.{signature}"
    unsigned = _encode({"alg": "none", "typ": "at+jwt"})
    yield "an edited token that says it needs no signature", f"{unsigned}.{edited}."
    symmetric = _encode({"alg": "HS256", "typ": "at+jwt", "kid": public["kid"]})
    secret = base64.urlsafe_b64decode(public["x"] + "==")
    code = hmac.digest(secret, f"{symmetric}.{edited}".encode(), "sha256")
    yield "an edited token signed with the public key as the secret", f"{symmetric}.{edited}.{_base64(code)}"
    yield "a token signed with a key of its own", SigningKey.create(key_id=public["kid"]).sign(claims)


async def try_the_stores(found: Iterator[tuple[str, Path, AbstractAsyncContextManager[object]]]) -> None:
    """Open skyline's files with the SDK, which knows on whose behalf it works."""
    for name, place, store in found:
        what = f"opens skyline's {name} as project harbour"
        if place.exists():
            await guarded(what, partial(_open, store))
        else:
            report(what, None, "there is no such file: the attempt was none")


async def try_the_way_out(bucket: Bucket, project: Path) -> None:
    """Leave its own bucket by the key."""
    for key in ("../../skyline/bucket/index.db", "%2e%2e/%2e%2e/skyline/bucket/index.db"):
        await guarded(f"gets {key!r} from its own bucket", partial(bucket.get, key))
    file = str(project / "bucket" / "index.db")
    await guarded("gets the whole path of skyline's file from its own bucket", partial(bucket.get, file))


async def main() -> None:
    """Try everything, once."""
    settings = SkylineSettings.load()
    async with Service("tower") as service:
        skyline = service.context.directory.parent / "skyline"
        own = await try_the_authority(settings)
        await try_the_service(settings, own)
        urls = StoreUrls.load()
        if urls.timeseries_url is None:
            await try_the_stores(cases(skyline))
        else:
            from skyline.foreign import try_the_servers

            await try_the_servers(service, urls, settings.foreign_graph, report)
            await try_the_stores(events(skyline))
        await try_the_way_out(await service.get(Bucket), skyline)


async def _open(store: AbstractAsyncContextManager[object]) -> None:
    async with store:
        pass


def _decode(part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=="))
    return content


def _encode(part: Mapping[str, Any]) -> str:
    return _base64(json.dumps(part).encode())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


if __name__ == "__main__":
    kmp_core.run(main)
