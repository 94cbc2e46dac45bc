"""The project's own pytest plugins, one concern each, from `tests/plugins`."""

pytest_plugins = ["fences", "leftovers", "profiles", "servers", "skips", "skyline_bed"]
