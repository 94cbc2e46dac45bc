"""What `import kmp_core` costs, against `import pydantic_settings`, which every service pays anyway.

Fresh interpreters, interleaved, so that a busy machine slows both alike. Budget: at most 1.2 times.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 15
MODULES = ("pydantic_settings", "kmp_core")
MEASURE = "import time; began = time.perf_counter(); import {}; print(time.perf_counter() - began)"


def seconds(module: str) -> float:
    """How long the import takes in an interpreter of its own, without the interpreter's own start."""
    command = [sys.executable, "-c", MEASURE.format(module)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    began = time.monotonic()
    for module in MODULES:  # compiles what is not yet compiled, and warms the disk's cache
        seconds(module)
    rounds = [{module: seconds(module) for module in MODULES} for _ in range(ROUNDS)]
    medians = {module: statistics.median(each[module] for each in rounds) for module in MODULES}
    ratio = statistics.median(each["kmp_core"] / each["pydantic_settings"] for each in rounds)
    for module, median in medians.items():
        print(f"import {module:<20} {median * 1000:7.1f} ms   median of {ROUNDS}")
    print(f"ratio {ratio:.2f}   budget 1.20   ({time.monotonic() - began:.0f} s)")


if __name__ == "__main__":
    main()
