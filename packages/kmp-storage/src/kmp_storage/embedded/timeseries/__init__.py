"""A time-series store that needs no server."""

from kmp_storage.embedded.timeseries.provider import SqliteTimeSeriesStore
from kmp_storage.embedded.timeseries.settings import TimeSeriesSettings

__all__ = ["SqliteTimeSeriesStore", "TimeSeriesSettings"]
