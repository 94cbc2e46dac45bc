"""Prove your own bus: derive from these suites and hand them a factory.

    class TestMyBus(EventBusContract):
        @pytest.fixture
        def make(self, tmp_path):
            return lambda project="acme": MyBus(f"my://{tmp_path}", project=project)

        async def inject(self, bus, topic, content):
            await bus.client.send(topic, content)

`SharedEventBusContract` adds what a bus promises that several processes share: a killed member, a stopped one, attempts
that outlive the process. It needs pytest and pytest-asyncio: `pip install kmp-messaging[testing]`.
"""

from kmp_messaging.testing.contract import EventBusContract
from kmp_messaging.testing.processes import Remote, Worker
from kmp_messaging.testing.samples import Noted
from kmp_messaging.testing.shared import SharedEventBusContract

__all__ = ["EventBusContract", "Noted", "Remote", "SharedEventBusContract", "Worker"]
