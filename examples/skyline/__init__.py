"""Skyline: three services, two projects and every departure from New York City in 2013, on one machine."""
