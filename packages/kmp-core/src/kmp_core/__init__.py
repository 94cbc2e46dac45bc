"""Write a service on shared infrastructure: get capabilities, run until told to stop, leave in order.

```python
from kmp_core import Service

async with Service("delays") as service:
    store = await service.get(TimeSeriesStore)
    await service.run()
```
"""

from kmp_core.capability import Capability, capability
from kmp_core.context import Context
from kmp_core.deadlines import Duration, Timeout, deadline, duration, remaining
from kmp_core.errors import (
    ConfigurationError,
    Conflict,
    DeadlineExceeded,
    InvalidInput,
    KmpError,
    NotFound,
    Unavailable,
    Unsupported,
)
from kmp_core.project import Environment, Project, ServiceName
from kmp_core.resource import Intake, Provider, Resource
from kmp_core.service import Service, run

__all__ = [
    "Capability",
    "ConfigurationError",
    "Conflict",
    "Context",
    "DeadlineExceeded",
    "Duration",
    "Environment",
    "Intake",
    "InvalidInput",
    "KmpError",
    "NotFound",
    "Project",
    "Provider",
    "Resource",
    "Service",
    "ServiceName",
    "Timeout",
    "Unavailable",
    "Unsupported",
    "capability",
    "deadline",
    "duration",
    "remaining",
    "run",
]
