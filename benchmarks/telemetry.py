"""What a call's telemetry costs: where nobody listens (budget 300 ns), and with an SDK that drops every span.

python benchmarks/telemetry.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext

from kmp_core.telemetry import Telemetry

ROUNDS = 11
CALLS = 200_000


def measure(work: Callable[[int], None], calls: int = CALLS) -> float:
    """Nanoseconds per call."""
    began = time.thread_time_ns()  # of the processor: a busy machine does not count
    work(calls)
    return (time.thread_time_ns() - began) / calls


def instrumented(telemetry: Telemetry) -> Callable[[int], None]:
    def work(calls: int) -> None:
        for _ in range(calls):
            with telemetry.call("append", 1):
                pass

    return work


def bare(calls: int) -> None:
    for _ in range(calls):
        pass


def empty(calls: int) -> None:
    nothing = nullcontext()
    for _ in range(calls):
        with nothing:
            pass


def main() -> None:
    silent = Telemetry("db", "sqlite", project="acme", scope="benchmark")
    work = instrumented(silent)
    costs = [(measure(work) - measure(bare), measure(empty) - measure(bare)) for _ in range(ROUNDS)]
    ours, least = (statistics.median(column) for column in zip(*costs, strict=True))
    print(f"nobody listens: {ours:7.0f} ns per call (budget 300; contextlib.nullcontext {least:.0f})")
    try:
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
    except ImportError:
        print("with an SDK:    not installed")
        return
    trace.set_tracer_provider(TracerProvider(sampler=ALWAYS_OFF))
    metrics.set_meter_provider(MeterProvider())
    loud = instrumented(Telemetry("db", "sqlite", project="acme", scope="benchmark"))
    costs_loud = [measure(loud, CALLS // 20) for _ in range(ROUNDS)]
    print(f"with an SDK:    {statistics.median(costs_loud):7.0f} ns per call (every span dropped)")


if __name__ == "__main__":
    main()
