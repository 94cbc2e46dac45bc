"""The leak test: a project's neighbour, with its own valid login and a bare driver, gets nothing of the project's.

No code of ours stands between the neighbour and the server, so what is proved here is the server's own refusal. Take
the suite of your backend (`leaks.timescale`, `leaks.neo4j`, `leaks.redis`, `leaks.s3`), or derive one for another
backend from `LeakTest`, and give it the logins of two projects that you provisioned; names of which one begins with
the other (`acme`, `acme2`) show the most.
"""

from kmp_storage.testing.leaks.suite import Attempt, Attempts, LeakTest, Login

__all__ = ["Attempt", "Attempts", "LeakTest", "Login"]
