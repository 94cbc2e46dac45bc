"""What is no project reaches no Neo4j."""

from __future__ import annotations

import pytest

from kmp_core.errors import InvalidInput
from kmp_storage.neo4j import Neo4jStore

NO_PROJECTS = ["", " ", ".", "..", "acme.", "a*", "acme/../b", "ACME", "\u0430cme", "acme\0", "acme\n", "-a", "x" * 41]


@pytest.mark.parametrize("name", NO_PROJECTS)
def test_a_name_that_is_no_project_reaches_no_server(name: str) -> None:
    with pytest.raises(InvalidInput, match="project") as refused:
        Neo4jStore("bolt://neo4j:hunter2@127.0.0.1:1", project=name)
    assert "for example" in str(refused.value)
    assert "hunter2" not in str(refused.value)
