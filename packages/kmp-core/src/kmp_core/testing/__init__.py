"""Test what you built on KMP: the contract that every provider keeps, a clock that you set, recorded telemetry.

A provider of your own proves itself by deriving from its capability's suite (`kmp_storage.testing`,
`kmp_messaging.testing`), all of which build on `ProviderContract`:

```python
class TestMyCache(CacheContract):
    @pytest.fixture
    def make(self, tmp_path):
        return lambda project="acme": MyCache(f"my://{tmp_path}", project=project)
```

One that uses a server proves in the same way what it does while the server fails (`ProviderFaults`).

The fixtures `kmp_service`, `kmp_environment`, `kmp_clock` and `kmp_authority` come with the pytest plugin, which is
installed with kmp-core.
"""

from kmp_core.testing.contract import Make, ProviderContract, fork
from kmp_core.testing.faults import FaultyServer, MakeAt, ProviderFaults
from kmp_core.testing.isolation import IsolatedEnvironment, ManualClock
from kmp_core.testing.telemetry import Point, RecordedSpan, Recorder
from kmp_core.testing.wire import Wire, WireTls, mark

__all__ = [
    "FaultyServer",
    "IsolatedEnvironment",
    "Make",
    "MakeAt",
    "ManualClock",
    "Point",
    "ProviderContract",
    "ProviderFaults",
    "RecordedSpan",
    "Recorder",
    "Wire",
    "WireTls",
    "fork",
    "mark",
]
