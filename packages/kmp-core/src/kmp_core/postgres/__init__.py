"""Connections to PostgreSQL that several siblings share: bounded in number and time, clean when they change hands.

    pool = PostgresPool("timescale://acme@db.internal/acme?sslrootcert=/etc/ssl/db-ca.pem", password=current_password)
    async with pool:
        async with pool.acquire() as connection:
            rows = await connection.fetch("SELECT * FROM flights WHERE origin = $1", "JFK")
        async with pool.transaction() as transaction:
            await transaction.execute("INSERT INTO ...")

- Waiting for a connection ends with `PoolExhausted`, in the order of asking; a statement ends with `DeadlineExceeded`.
- A call that was cancelled, or whose time was over, cuts its connection: no answer ever reaches the wrong caller.
- A connection that goes back is reset: transaction, role, settings, temporary tables, advisory locks, LISTEN.
- Connections to a server that left, or that became read-only in a failover, are replaced; nothing needs a restart.
"""

from kmp_core.postgres.address import Address, Password, PasswordSource
from kmp_core.postgres.connection import Connection, Progress
from kmp_core.postgres.errors import Contention
from kmp_core.postgres.pool import PoolOptions, PostgresPool
from kmp_core.postgres.transaction import Isolation, Transaction, TransactionUndone

__all__ = [
    "Address",
    "Connection",
    "Contention",
    "Isolation",
    "Password",
    "PasswordSource",
    "PoolOptions",
    "PostgresPool",
    "Progress",
    "Transaction",
    "TransactionUndone",
]
