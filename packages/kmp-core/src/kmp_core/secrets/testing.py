"""Prove a `SecretStore` of your own: the contract that every one keeps.

```python
class TestVaultSecrets(SecretStoreContract):
    @pytest.fixture
    def make(self, vault):
        return lambda project="acme": VaultSecrets(vault.url, project=project)

    @pytest.fixture
    def put(self, vault):
        def put(name, value, project="acme"): ...      # store the bytes, or remove the secret where value is None
        return put
```
"""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol, cast

import pytest

from kmp_core.deadlines import deadline
from kmp_core.errors import InvalidInput, KmpError, NotFound
from kmp_core.secrets import Secret, SecretStore
from kmp_core.testing import Make, ProviderContract

__all__ = ["Put", "SecretStoreContract"]

_VALUE = b"correct horse battery staple"
_PATIENCE = 20


class Put(Protocol):
    """What the fixture `put` returns: change a secret behind the provider's back."""

    def __call__(self, name: str, value: bytes | None, project: str = "acme") -> None: ...


class SecretStoreContract(ProviderContract):
    """What every store of secrets promises. Override the fixtures `make` and `put`; make rotations quick to notice."""

    @pytest.fixture
    def put(self) -> Put:
        """How the test stores a secret; override this fixture."""
        raise NotImplementedError("define a fixture `put` that stores or removes a secret")

    @pytest.fixture(autouse=True)
    def _stored(self, put: Put) -> None:
        put("token", _VALUE)

    async def write(self, provider: Any) -> None:
        await provider.get("token")

    async def wrote(self, provider: Any) -> bool:
        try:
            secret: Secret = await provider.get("token")
        except NotFound:
            return False
        return secret.reveal_bytes() == _VALUE

    async def test_gives_what_was_stored_to_the_last_byte(self, make: Make, put: Put) -> None:
        put("certificate", b"-----BEGIN-----\nAAAA\n")
        async with make() as store:
            secret = await store.get("certificate")
        assert secret.name == "certificate"
        assert secret.reveal_bytes() == b"-----BEGIN-----\nAAAA\n"
        assert secret.reveal() == "-----BEGIN-----\nAAAA"

    async def test_never_shows_a_value_by_accident(self, make: Make) -> None:
        async with make() as store:
            secret = await store.get("token")
        for shown in (
            repr(secret),
            str(secret),
            f"{secret}",
            f"{secret:>40}",
            f"{secret!r}",
            f"{[secret]}",
        ):
            assert "horse" not in shown
        for leak in (lambda: json.dumps(secret), lambda: pickle.dumps(secret)):
            with pytest.raises(TypeError) as caught:
                leak()
            assert "horse" not in str(caught.value)
        assert copy.deepcopy(secret) == secret
        assert "horse" not in repr(store)

    async def test_a_secret_that_is_not_there_is_named(self, make: Make) -> None:
        async with make() as store:
            with pytest.raises(NotFound, match="no-such-secret"):
                await store.get("no-such-secret")
            with pytest.raises(NotFound, match="no-such-secret"):
                await anext(aiter(store.watch("no-such-secret")))

    @pytest.mark.parametrize(
        "name",
        [
            "",
            ".",
            "..",
            "../token",
            "a/../token",
            "/etc/passwd",
            "..data",
            "a/b",
            "a\\b",
            "a\0b",
            "a\n",
            "sécret",
            "a" * 254,
        ],
    )
    async def test_refuses_a_name_that_could_be_a_path(self, make: Make, name: str) -> None:
        async with make() as store:
            with pytest.raises(InvalidInput):
                await store.get(name)
            with pytest.raises(InvalidInput):
                await anext(aiter(store.watch(name)))

    async def test_watch_begins_with_the_value_and_goes_on_with_each_rotation(self, make: Make, put: Put) -> None:
        async with make() as provider, deadline(_PATIENCE):
            store = cast(SecretStore, provider)
            async with _watching(store) as values:
                assert (await anext(values)).reveal_bytes() == _VALUE
                for value in (b"second", b"third"):
                    put("token", value)
                    assert (await anext(values)).reveal_bytes() == value
                    assert (await store.get("token")).reveal_bytes() == value

    async def test_watch_outlives_a_removal(self, make: Make, put: Put) -> None:
        async with make() as provider, deadline(_PATIENCE):
            store = cast(SecretStore, provider)
            async with _watching(store) as values:
                await anext(values)
                upcoming = asyncio.ensure_future(anext(values))
                put("token", None)
                while await self.wrote(store):  # noqa: ASYNC110 - nothing tells when a store has noticed
                    await asyncio.sleep(0.01)
                assert not upcoming.done()
                put("token", b"back again")
                assert (await upcoming).reveal_bytes() == b"back again"

    async def test_watch_ends_with_an_error_when_the_store_is_closed(self, make: Make) -> None:
        provider = make()
        await provider.open()
        async with _watching(provider) as values, deadline(_PATIENCE):
            await anext(values)
            await provider.close()
            with pytest.raises(KmpError):
                await anext(values)


def _watching(store: SecretStore) -> aclosing[Any]:
    values: AsyncIterator[Secret] = store.watch("token")
    return aclosing(cast(Any, values))
