"""Between node and edge classes and what the graph's tables keep: a key or two ends, and properties as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from kmp_core.errors import InvalidInput
from kmp_storage.columns import decoder, encode_value
from kmp_storage.fields import FieldType
from kmp_storage.graph.codecs import Codecs, EdgeCodec, NodeCodec, Properties
from kmp_storage.models import Edge, Node

__all__ = ["EdgeCodec", "NodeCodec", "edge_codec", "node_codec"]


class _Properties(Properties):
    def __init__(
        self, model: type[Node] | type[Edge], fields: Mapping[str, FieldType], identify: tuple[str, ...]
    ) -> None:
        super().__init__(model, fields, identify)
        self._decoders = {name: decode for name, field in self.fields.items() if (decode := decoder(field))}

    def encode(self, item: Node | Edge, row: int | None) -> dict[str, Any]:
        given: dict[str, Any] = {}
        for name, field in self.fields.items():
            if name not in item.model_fields_set:
                continue
            value = getattr(item, name)
            if value is None and not field.optional:
                raise InvalidInput(name, "must not be None", row=row)
            kept = encode_value(field, value, row=row)
            given[name] = base64.b64encode(kept).decode() if isinstance(kept, bytes) else kept
        return given

    def decode(self, stored: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in json.loads(stored).items():
            field = self.fields.get(name)
            if field is None:
                continue
            if value is not None and field.kind == "bytes":
                value = base64.b64decode(value)
            decode = self._decoders.get(name)
            found[name] = value if decode is None or value is None else decode(value)
        return found


_codecs = Codecs(_Properties)
node_codec, edge_codec = _codecs.node, _codecs.edge
