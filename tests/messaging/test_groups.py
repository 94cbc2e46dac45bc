"""Sharing slots: leases, take-over, and generations that fence off whoever was away too long."""

import os
import sqlite3
import subprocess
import sys

import pytest

from kmp_messaging.embedded import groups
from kmp_messaging.embedded.log import append, ensure_topic
from kmp_messaging.embedded.process import alive, this_process
from kmp_messaging.embedded.schema import MIGRATIONS


@pytest.fixture
def connection():
    made = sqlite3.connect(":memory:", isolation_level=None)
    for script in MIGRATIONS:
        made.executescript(script)
    yield made
    made.close()


def divide(connection, group, member, *, now, active=(), lease=10.0, process="- 1 1"):
    return groups.divide(connection, group, member, active=active, process=process, alive=alive, now=now, lease=lease)


@pytest.fixture
def group(connection):
    topic = ensure_topic(connection, "t", 4)
    append(connection, {slot: [b"{}"] * 10 for slot in topic.slots})
    return groups.ensure_group(connection, "g", topic)


def positions(connection):
    return dict(connection.execute("SELECT slot, position FROM progress"))


def test_a_member_alone_gets_everything_and_two_share(connection, group):
    first = divide(connection, group, "a", now=100.0)
    assert [claim.slot for claim in first.claims] == [1, 2, 3, 4]
    joined = divide(connection, group, "b", now=101.0)
    assert joined.claims == []
    assert not joined.complete
    again = divide(connection, group, "a", now=102.0, active={1, 2, 3, 4})
    assert again.surplus == {2, 4}
    groups.release(connection, group, "a", [(slot, 1, 3) for slot in again.surplus])
    taken = divide(connection, group, "b", now=103.0)
    assert [(claim.slot, claim.position, claim.generation) for claim in taken.claims] == [(2, 3, 2), (4, 3, 2)]
    assert taken.epoch > joined.epoch


def test_a_lease_that_holds_is_respected_and_one_that_ended_is_not(connection, group):
    divide(connection, group, "a", now=100.0)
    assert divide(connection, group, "b", now=109.0).claims == []
    assert len(divide(connection, group, "b", now=120.0).claims) == 4


def test_a_lease_from_before_a_restart_of_the_machine_holds_nothing(connection, group):
    divide(connection, group, "a", now=1_000_000.0)
    assert len(divide(connection, group, "b", now=5.0).claims) == 4


def test_who_was_away_too_long_commits_nothing(connection, group):
    divide(connection, group, "a", now=100.0)
    groups.advance(connection, group, [(1, 1, 2)], {1: 9}, False)
    (mine, *_) = divide(connection, group, "b", now=200.0).claims
    assert (mine.slot, mine.position, mine.suspect, mine.generation) == (1, 2, 0, 2)
    assert groups.advance(connection, group, [(1, 2, 7)], {}, False) == set()
    assert groups.advance(connection, group, [(1, 1, 9), (2, 1, 5)], {}, False) == {1, 2}
    groups.release(connection, group, "a", [(1, 1, 9)])
    assert positions(connection)[1] == 7
    assert positions(connection)[2] == 0
    assert connection.execute("SELECT owner FROM progress WHERE slot = 1").fetchone() == ("b",)


def test_what_two_owners_in_a_row_did_not_let_go_is_suspect(connection, group):
    divide(connection, group, "a", now=100.0)
    groups.advance(connection, group, [(1, 1, 2), (2, 1, 4)], {1: 9, 2: 9}, False)
    assert [claim.suspect for claim in divide(connection, group, "b", now=200.0).claims] == [0, 0, 0, 0]
    groups.advance(connection, group, [(1, 2, 5)], {1: 10}, False)
    # Of slot 1 only what the first owner had too; what came to the second alone has been through one death.
    claims = divide(connection, group, "c", now=300.0).claims
    assert [(claim.position, claim.suspect) for claim in claims] == [(5, 9), (4, 9), (0, 0), (0, 0)]
    groups.release(connection, group, "c", [(1, 3, 6), (2, 3, 4)])
    claims = divide(connection, group, "c", now=301.0, active={3, 4}).claims
    assert all(claim.suspect <= claim.position for claim in claims), "who lets go in peace leaves no suspicion"


def test_a_position_never_goes_back(connection, group):
    divide(connection, group, "a", now=100.0)
    groups.advance(connection, group, [(1, 1, 7)], {}, False)
    groups.advance(connection, group, [(1, 1, 4)], {}, False)
    assert positions(connection)[1] == 7


def test_a_process_that_ended_is_noticed_at_once(connection, group):
    show = "from kmp_messaging.embedded.process import this_process; print(this_process())"
    ended = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout.strip()
    assert not alive(ended)
    assert alive(this_process())
    divide(connection, group, "a", now=100.0, process=ended)
    assert len(divide(connection, group, "b", now=100.1, process=this_process()).claims) == 4


def test_another_process_with_the_same_number_is_not_taken_for_it():
    world, number, _ = this_process().rsplit(" ", 2)
    assert int(number) == os.getpid()
    assert not alive(f"{world} {number} 1")
    # A stranger's world: only its lease can tell.
    assert alive(f"another/1 {number} 1")
