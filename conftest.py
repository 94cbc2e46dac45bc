"""The project's own pytest plugins, one concern each, from `tests/plugins`."""

pytest_plugins = [
    "fences",
    "interrupts",
    "leftovers",
    "profiles",
    "redis_ways",
    "servers",
    "skips",
    "skyline_bed",
    "thief",
]
