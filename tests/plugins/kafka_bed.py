"""The Kafka of the test bed as its administrator sees it: topics, groups, ACLs and users."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import for_code
from aiokafka.protocol.admin import DescribeAclsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import CompactArray, CompactBytes, CompactString, Int8, Int16, Int32, Schema, TaggedFields

import testbed

ADMINISTRATOR = "admin"
_ANY = 1
_INTERNAL = "__"
_SHA_256 = 1
_ITERATIONS = 4096


def login(server: testbed.Server) -> dict[str, Any]:
    """What a client of the driver needs to be the administrator."""
    return {
        "bootstrap_servers": server.address,
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "SCRAM-SHA-256",
        "sasl_plain_username": ADMINISTRATOR,
        "sasl_plain_password": server.password,
    }


@asynccontextmanager
async def administrator(server: testbed.Server) -> AsyncIterator[AIOKafkaAdminClient]:
    """A connection of whoever may do everything."""
    client = AIOKafkaAdminClient(**login(server))
    try:
        await client.start()
        yield client
    finally:
        await client.close()


@asynccontextmanager
async def consumer(server: testbed.Server, group: str) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer of a group, without a topic yet."""
    client = AIOKafkaConsumer(group_id=group, enable_auto_commit=False, **login(server))
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


async def topics(client: AIOKafkaAdminClient) -> list[str]:
    """The topics that somebody made; Kafka's own are not among them."""
    return sorted(name for name in await client.list_topics() if not name.startswith(_INTERNAL))


async def groups(client: AIOKafkaAdminClient) -> list[str]:
    """The consumer groups that the server remembers."""
    return sorted(group[0] for group in await client.list_consumer_groups())


async def acls(client: AIOKafkaAdminClient) -> list[str]:
    """Who has an entry, and on what."""
    answer = await client._send_request(DescribeAclsRequest(_ANY, None, _ANY, None, None, _ANY, _ANY))
    return sorted({f"{acl[0]} on {name}" for _, name, _, entries in answer.resources for acl in entries})


async def users(client: AIOKafkaAdminClient) -> list[str]:
    """The users with a SCRAM password, but for the administrator."""
    answer = await client._send_request(_DescribeUsers())
    return sorted(name for name, *_ in answer.results if name != ADMINISTRATOR)


async def set_password(client: AIOKafkaAdminClient, name: str, password: str) -> None:
    """Have a user log in with this password, by SCRAM-SHA-256."""
    salt = secrets.token_bytes(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, _ITERATIONS)
    await _alter(client, _AlterUsers([], [(name, _SHA_256, _ITERATIONS, salt, salted, {})]))


async def remove_user(client: AIOKafkaAdminClient, name: str) -> None:
    """Have a user no more."""
    await _alter(client, _AlterUsers([(name, _SHA_256, {})], []))


async def _alter(client: AIOKafkaAdminClient, request: _AlterUsers) -> None:
    answer = await client._send_to_controller(request)
    for name, code, message, _ in answer.results:
        if code:
            raise for_code(code)(f"{name}: {message}")


# The driver has no requests for users: APIs 50 and 51 of the Kafka protocol guide.


class _Users(Response):  # type: ignore[misc]
    API_KEY = 50
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("error_message", CompactString("utf-8")),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("credentials", CompactArray(("mechanism", Int8), ("iterations", Int32), ("tags", TaggedFields))),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeUsers0(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 50
    API_VERSION = 0
    RESPONSE_TYPE = _Users
    SCHEMA = Schema(
        ("users", CompactArray(("name", CompactString("utf-8")), ("tags", TaggedFields))), ("tags", TaggedFields)
    )


_DescribeUsersStruct: TypeAlias = _DescribeUsers0


class _DescribeUsers(Request[_DescribeUsersStruct]):  # type: ignore[misc]
    API_KEY = 50

    def build(self, request_struct_class: type[_DescribeUsersStruct]) -> _DescribeUsersStruct:
        return request_struct_class(None, {})


class _Altered(Response):  # type: ignore[misc]
    API_KEY = 51
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterUsers0(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 51
    API_VERSION = 0
    RESPONSE_TYPE = _Altered
    SCHEMA = Schema(
        ("deletions", CompactArray(("name", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields))),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


_AlterUsersStruct: TypeAlias = _AlterUsers0


class _AlterUsers(Request[_AlterUsersStruct]):  # type: ignore[misc]
    API_KEY = 51

    def __init__(self, deletions: list[Any], upsertions: list[Any]) -> None:
        self._changes = deletions, upsertions

    def build(self, request_struct_class: type[_AlterUsersStruct]) -> _AlterUsersStruct:
        return request_struct_class(*self._changes, {})
