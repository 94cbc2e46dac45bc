"""Makes both projects on real servers, with rights that no service has, and removes them at the end."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import quote

from kmp_core.secrets import Secret
from kmp_storage.bucket.provisioning import VersityProvisioner
from kmp_storage.neo4j import Neo4jStore
from kmp_storage.redis.provisioning import RedisProvisioner
from kmp_storage.timescale.provisioning import TimescaleProvisioner
from skyline.places import PROJECTS, Administrators, Places

__all__ = ["provisioned"]


@asynccontextmanager
async def provisioned(administrators: Administrators) -> AsyncGenerator[Places, None]:
    """Make both projects new and empty, each with credentials of its own; both are gone after the block."""
    timescale = TimescaleProvisioner(administrators.timeseries.reveal())
    redis = RedisProvisioner(administrators.cache.reveal())
    async with timescale, redis, VersityProvisioner(administrators.bucket.reveal()) as buckets:

        async def remove() -> None:
            for project in PROJECTS:
                await timescale.deprovision(project, force=True)
                await redis.deprovision(project, force=True)
                await buckets.deprovision(project, force=True)
                await _empty_graph(project, _graph(administrators, project))

        async def make(project: str) -> dict[str, Secret]:
            access = await timescale.provision(project)
            password = await redis.provision(project)
            assert password is not None, "the project was removed a moment ago"
            key = await buckets.provision(project)
            cache, bucket = administrators.cache.reveal(), administrators.bucket.reveal()
            urls = {
                "TIMESERIES": access.url.reveal(),
                "GRAPH": _graph(administrators, project),
                "CACHE": _with(cache, project, password.reveal()),
                "BUCKET": _with(bucket, key.name, key.secret),
            }
            return {f"KMP_STORAGE_{name}_URL": Secret(url) for name, url in urls.items()}

        await remove()
        try:
            places = {project: await make(project) for project in PROJECTS}
            yield Places(of=places, foreign_graph=_without_credentials(_graph(administrators, "skyline")))
        finally:
            await remove()


async def _empty_graph(project: str, url: str) -> None:
    """An instance is not made or removed here; what the example left in it is, and whose it is.

    The store refuses an instance of another project.
    """
    async with Neo4jStore(url, project=project) as store:
        await store.run("MATCH (n:Airport|_KmpOwner) DETACH DELETE n")


def _graph(administrators: Administrators, project: str) -> str:
    graphs = administrators.graph
    return (graphs.skyline if project == "skyline" else graphs.harbour).reveal()


def _with(url: str, user: str, password: str) -> str:
    """The same server, and another who logs in."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{rest.rpartition('@')[2]}"


def _without_credentials(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"
