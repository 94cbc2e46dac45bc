"""Time series, graphs, caches and buckets that belong to one project each.

Ask a service for a capability (`await service.get(TimeSeriesStore)`), and store models of your own: subclasses of
`Measurement`, `Node` and `Edge`.
"""

from kmp_storage.models import Edge, Measurement, Node, key_of
from kmp_storage.protocols import Aggregation, Bucket, Cache, Direction, Fill, GraphStore, TimeSeriesStore, Via
from kmp_storage.values import BucketEntry, CacheStatistics, Lease, Path, Row

__all__ = [
    "Aggregation",
    "Bucket",
    "BucketEntry",
    "Cache",
    "CacheStatistics",
    "Direction",
    "Edge",
    "Fill",
    "GraphStore",
    "Lease",
    "Measurement",
    "Node",
    "Path",
    "Row",
    "TimeSeriesStore",
    "Via",
    "key_of",
]
