"""What a token check costs, against the bare signature check and against `jwt.decode`, in one process.

    python benchmarks/tokens.py [rounds]

The contenders run in turn, round by round, so that the machine's moods hit all alike. Figures are
medians of this thread's processor time: a check waits for nothing, and a neighbour's load is none of its cost. Budgets:
a new token RS256 <= 1.6, ES256 <= 1.2, EdDSA <= 1.15 times the bare check and less than `jwt.decode`; a token seen
before >= 40 times the rate of `jwt.decode`.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, get_args

import jwt

from kmp_core.tokens import jws
from kmp_core.tokens.authority import DevelopmentAuthority
from kmp_core.tokens.jwk import VerificationKey
from kmp_core.tokens.signing import Algorithm

TOKENS = 50  # a turn is shorter than the scheduler's, so that the median is of undisturbed ones
BUDGETS = {"RS256": 1.6, "ES256": 1.2, "EdDSA": 1.15}
SEEN_BUDGET = 40


def measured(work: Callable[[], None]) -> float:
    """Microseconds for each token."""
    gc.collect()
    gc.disable()
    work()  # as in a server that is at work: the collector's walk has emptied the processor's caches
    began = time.thread_time()
    work()
    elapsed = time.thread_time() - began
    gc.enable()
    return elapsed / TOKENS * 1e6


async def awaited(verify: Callable[[str], Awaitable[object]], before: list[str], tokens: list[str]) -> float:
    """The same inside a loop that runs already; other tokens came `before`."""
    gc.collect()
    gc.disable()
    for token in before:
        await verify(token)
    began = time.thread_time()
    for token in tokens:
        await verify(token)
    elapsed = time.thread_time() - began
    gc.enable()
    return elapsed / len(tokens) * 1e6


class Contest:
    """One algorithm: the same tokens for every contender."""

    def __init__(self, algorithm: Algorithm) -> None:
        self.authority = DevelopmentAuthority(algorithm=algorithm)
        self.algorithm = algorithm
        [jwk] = self.authority.jwks()["keys"]
        self.check = VerificationKey.from_jwk(jwk).check
        self.pyjwk = jwt.PyJWK(jwk)
        self.loop = asyncio.new_event_loop()
        tokens = [
            self.authority.issue(project="skyline", service="departures", audience="delays") for _ in range(2 * TOKENS)
        ]
        self.before, self.tokens = tokens[:TOKENS], tokens[TOKENS:]
        self.parts = [jws.split(token.encode())[:1:-1] for token in self.tokens]  # signature and signed part

    def bare(self) -> float:
        check = self.check

        def work() -> None:
            for signature, signed in self.parts:
                check(signature, signed)

        return measured(work)

    def decode(self) -> float:
        def work() -> None:
            for token in self.tokens:
                jwt.decode(
                    token, self.pyjwk, algorithms=[self.algorithm], audience="delays", issuer=self.authority.issuer
                )

        return measured(work)

    def new(self) -> float:
        verify = self.authority.verifier(audience="delays").verify
        return self.loop.run_until_complete(awaited(verify, self.before, self.tokens))

    def seen(self) -> float:
        verify = self.authority.verifier(audience="delays").verify
        return self.loop.run_until_complete(awaited(verify, self.tokens, self.tokens * 10))


def report(contest: Contest, rounds: int) -> None:
    contenders: dict[str, Callable[[], float]] = {
        "bare signature check": contest.bare,
        "jwt.decode": contest.decode,
        "verify, new token": contest.new,
        "verify, seen before": contest.seen,
    }
    results: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            results[name].append(run())
    medians = {name: statistics.median(values) for name, values in results.items()}
    print(f"\n{contest.algorithm}")
    for name, value in medians.items():
        print(f"  {name:22} {value:9.2f} us  {1e6 / value:12,.0f} /s")

    def ratios(above: str, below: str) -> float:
        return statistics.median(a / b for a, b in zip(results[above], results[below], strict=True))

    budget = BUDGETS[contest.algorithm]
    print(
        f"  new / bare             {ratios('verify, new token', 'bare signature check'):9.2f}     (budget <= {budget})"
    )
    print(f"  new / jwt.decode       {ratios('verify, new token', 'jwt.decode'):9.2f}     (budget < 1)")
    print(f"  jwt.decode / seen      {ratios('jwt.decode', 'verify, seen before'):9.1f}     (budget >= {SEEN_BUDGET})")


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 101
    print(f"{sys.implementation.name} {sys.version.split()[0]}, {rounds} rounds of {TOKENS} tokens, medians")
    algorithms: tuple[Any, ...] = get_args(Algorithm)
    for algorithm in algorithms:
        contest = Contest(algorithm)
        try:
            report(contest, rounds)
        finally:
            contest.loop.close()


if __name__ == "__main__":
    main()
