"""Names are checked when they are made, and no two projects share a name on any backend."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from kmp_core.errors import InvalidInput
from kmp_core.project import Environment, Project, ServiceName, backend_name

BACKENDS = ("postgres", "neo4j", "redis", "kafka", "bucket", "kubernetes", "file")

# Written down here once more, from each backend's own documentation, and not taken from the code under test.
LEGAL = {
    "postgres": r"(?!pg_|timescaledb)[a-z_][a-z0-9_]{0,62}",
    "neo4j": r"(?!system)[a-z][a-z0-9-]{1,61}[a-z0-9]",
    "redis": r"[a-z0-9-]+",
    "kafka": r"[a-zA-Z0-9_-]{1,200}",
    "bucket": r"(?!xn--|sthree-|amzn-s3-demo-)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"
    r"(?<!-s3alias)(?<!--ol-s3)(?<!--x-s3)(?<!--table-s3)",
    "kubernetes": r"(?!kube-)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
    "file": r"[a-z0-9][a-z0-9-]*",
}
TAKEN = {
    "postgres": {"postgres", "template0", "template1", "public", "none", "information_schema"},
    "neo4j": {"neo4j", "system"},
    "redis": {"default"},
    "kubernetes": {"default", "kube-system", "kube-public", "kube-node-lease"},
}

plain = st.from_regex(r"[a-z0-9][a-z0-9-]{0,38}[a-z0-9]", fullmatch=True)
edges = st.builds(
    lambda before, middle, after: (before + middle + after)[:40].strip("-"),
    st.sampled_from(("", "kmp--", "kmp--kmp--", "pg-", "pg", "system", "neo4j", "xn--", "sthree-", "kube-", "0", "9")),
    st.from_regex(r"[a-z0-9-]{0,12}", fullmatch=True),
    st.sampled_from(("", "--kmp", "-s3alias", "--ol-s3", "--x-s3", "--table-s3")),
)
labels = st.one_of(plain, edges).filter(lambda text: 2 <= len(text) <= 40)


def project_names(backend: str) -> st.SearchStrategy[str]:
    return st.one_of(
        labels, st.sampled_from(sorted(TAKEN.get(backend, {"skyline"}))).map(lambda t: t.replace("_", "-"))
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_project_has_a_legal_and_free_name_on_every_backend(backend):
    @given(project_names(backend))
    @example("pg-catalog")
    @example("information-schema")
    @example("neo4j")
    @example("system-x")
    @example("default")
    @example("kube-system")
    @example("a1")
    @example("a" * 40)
    @example("xn--" + "a" * 35)
    @example("a" * 32 + "-s3alias")
    def check(name):
        named = backend_name(Project(name), backend)
        assert re.fullmatch(LEGAL[backend], named), named
        assert named not in TAKEN.get(backend, set())

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_projects_never_share_a_name(backend):
    @given(labels, labels)
    @example("0x", "kmp--0x")  # the escape of one is what the other would be called
    @example("0x", "kmp--0x--kmp")
    @example("acme", "acme2")
    def check(one, other):
        same = backend_name(Project(one), backend) == backend_name(Project(other), backend)
        assert same == (one == other)

    check()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_that_the_escape_would_produce_is_escaped_itself(backend):
    # Aimed: for each project that is escaped, ask what other project could be mapped onto the same name.
    for name in ("0x", "pg-x", "neo4j", "system", "ab", "default", "kube-x", "xn--x", "x-s3alias", "public"):
        escaped = backend_name(Project(name), backend).replace("_", "-")
        if escaped != name:
            assert backend_name(Project(escaped), backend).replace("_", "-") != escaped


def test_kafka_topics_of_two_projects_do_not_collide_in_metrics():
    @given(labels, labels)
    def check(one, other):
        topics = [f"{backend_name(Project(name), 'kafka')}.events".replace(".", "_") for name in (one, other)]
        assert (topics[0] == topics[1]) == (one == other)

    check()


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(InvalidInput, match="postgres, neo4j"):
        backend_name(Project("skyline"), "oracle")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "a",
        "a" * 41,
        "",
        "Skyline",
        "sky_line",
        "-sky",
        "sky-",
        "sky.line",
        "..",
        "a*",
        "sky line",
        "skyline\n",
        "sky\0",
        "acme.",
    ],
)
def test_what_is_no_label_is_no_project(name):
    with pytest.raises(InvalidInput) as caught:
        Project(name)
    assert caught.value.field == "project"
    assert caught.value.example == '"skyline"'


@pytest.mark.parametrize("name", ["skyl\u0456ne", "\uff53kyline", "sky\u2010line", "skyl\u0131ne", "\u0661234"])
def test_a_look_alike_letter_is_named_by_its_code_point(name):
    foreign = next(c for c in name if not c.isascii())
    with pytest.raises(InvalidInput, match=rf"U\+{ord(foreign):04X} \(.+\)"):
        Project(name)


def test_something_else_than_text_is_refused():
    with pytest.raises(InvalidInput, match="must be text, not int"):
        Project(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "longest"), [(Project, 40), (ServiceName, 63), (Environment, 40)])
def test_each_name_has_its_own_length(kind, longest):
    assert kind("a" * longest) == "a" * longest
    with pytest.raises(InvalidInput, match=f"to {longest} characters"):
        kind("a" * (longest + 1))


def test_a_name_survives_pickling_and_json_as_the_same_type():
    class Holder(BaseModel):
        project: Project

    holder = Holder(project="skyline")  # type: ignore[arg-type]
    assert type(holder.project) is Project
    assert type(Holder.model_validate_json(holder.model_dump_json()).project) is Project
    assert type(pickle.loads(pickle.dumps(holder.project))) is Project
    assert Project(holder.project) is holder.project
    with pytest.raises(ValidationError, match="must begin and end"):
        Holder(project="a-")  # type: ignore[arg-type]
