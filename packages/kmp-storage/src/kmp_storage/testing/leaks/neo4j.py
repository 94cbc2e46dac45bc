"""The leak test of Neo4j Community, where a project has an instance of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from kmp_core.plugins import extra
from kmp_storage.testing.leaks.suite import Attempt, Attempts, LeakTest, Login

with extra("neo4j", install="kmp-storage[neo4j]"):
    from neo4j import AsyncGraphDatabase
    from neo4j.exceptions import AuthError

__all__ = ["Neo4jLeaks"]

_Guess = tuple[str | None, str]

_READ = "MATCH (n:KmpLeakTest) RETURN n.secret AS secret"


class Neo4jLeaks(LeakTest):
    """The neighbour's login at the victim's instance, and the victim's content in the neighbour's own instance.

    `host` and `port` of a `Login` are those of the project's own instance, `place` is its database.
    """

    _wrong: Mapping[tuple[Login, str | None, str], AuthError] = {}

    def refused(self, error: Exception) -> bool:
        return isinstance(error, AuthError)

    async def plant(self, victim: Login) -> None:
        await self._run(victim, victim, "MERGE (n:KmpLeakTest {key: 1}) SET n.secret = $secret", secret=self.secret)

    async def untouched(self, victim: Login) -> bool:
        return await self._run(victim, victim, "MATCH (n:KmpLeakTest) RETURN n.key, n.secret") == [[1, self.secret]]

    def connect(self, victim: Login, neighbour: Login) -> Attempts:
        def attempt(user: str | None, password: str) -> Attempt:
            return lambda: self._run(victim, (user, password), "RETURN 1")

        return {
            "the neighbour's login": attempt(neighbour.user, neighbour.password),
            "no login": attempt(None, ""),
        }

    def read(self, victim: Login, neighbour: Login) -> Attempts:
        return {
            "a node": lambda: self._run(victim, neighbour, _READ),
            "every property": lambda: self._run(victim, neighbour, "MATCH (n) RETURN properties(n)"),
        }

    def write(self, victim: Login, neighbour: Login) -> Attempts:
        return {
            statement: self._statement(victim, neighbour, statement)
            for statement in (
                "CREATE (n:Planted) RETURN 1",
                "MATCH (n:KmpLeakTest) SET n.secret = 'changed' RETURN 1",
                "MATCH (n) DETACH DELETE n RETURN 1",
                "CREATE CONSTRAINT planted FOR (n:KmpLeakTest) REQUIRE n.secret IS UNIQUE",
            )
        }

    def browse(self, victim: Login, neighbour: Login) -> Attempts:
        async def content_in_its_own() -> bool:
            rows = await self._run(neighbour, neighbour, "MATCH (n) RETURN properties(n)")
            return self.secret in str(rows)

        async def shown(statement: str) -> bool:
            return "KmpLeakTest" in str(await self._run(neighbour, neighbour, statement))

        async def other_databases() -> list[Any]:
            rows = await self._run(neighbour, neighbour, "SHOW DATABASES YIELD name")
            return [name for (name,) in rows if name not in {neighbour.place, "system"}]

        return {
            "content in its own instance": content_in_its_own,
            "labels in its own instance": lambda: shown("CALL db.labels()"),
            "other databases of its own instance": other_databases,
            "databases of the victim's instance": lambda: self._run(victim, neighbour, "SHOW DATABASES YIELD name"),
            "users of the victim's instance": self._statement(
                victim, neighbour, "SHOW USERS YIELD user", database="system"
            ),
            "labels of the victim's instance": lambda: self._run(victim, neighbour, "CALL db.labels()"),
        }

    def guess(self, victim: Login, neighbour: Login) -> Attempts:
        def attempt(password: str) -> Attempt:
            return lambda: self._run(victim, (victim.user, password), _READ)

        guesses = {"the first password": "neo4j", "a usual password": "password"}
        return {f"the victim's user with {what}": attempt(password) for what, password in guesses.items()}

    def widen(self, victim: Login, neighbour: Login) -> Attempts:
        return {
            statement: self._statement(victim, neighbour, statement, database="system")
            for statement in (
                "CREATE USER mine SET PASSWORD 'mine-mine-mine' CHANGE NOT REQUIRED",
                f"ALTER USER {victim.user} SET PASSWORD 'mine-mine-mine' CHANGE NOT REQUIRED",
            )
        }

    def _statement(self, at: Login, login: Login, statement: str, *, database: str | None = None) -> Attempt:
        async def tried() -> object:
            return await self._run(at, login, statement, database=database) or "the server did it"

        return tried

    async def _run(
        self, at: Login, login: Login | _Guess, statement: str, *, database: str | None = None, **parameters: Any
    ) -> list[list[Any]]:
        """Run a statement at one project's instance with a login, and return the rows."""
        user, password = (login.user, login.password) if isinstance(login, Login) else login
        # Not twice: after three wrong passwords the server refuses the victim's own right one for a while.
        known = self._wrong.get((at, user, password))
        if known is not None:
            raise known
        auth = None if user is None else (user, password)
        drivers = cast(Any, AsyncGraphDatabase)  # whose types want statements that stand in the source
        async with drivers.driver(f"bolt://{at.host}:{at.port}", auth=auth, connection_timeout=5) as driver:
            try:
                result = await driver.execute_query(statement, parameters, database_=database or at.place)
            except AuthError as error:
                self._wrong = {**self._wrong, (at, user, password): error}
                raise
        return [list(record.values()) for record in result.records]
