"""What Label Studio sends and takes, as JSON objects; what stands in them is checked where it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["JsonObject", "JsonView", "Region", "Task"]

# One that is made here, and one that is only read.
JsonObject = dict[str, Any]
JsonView = Mapping[str, Any]
# With "id" and "data", and where there are any "annotations", "drafts" and "predictions".
Task = Mapping[str, Any]
# One entry of a "result": "id", "type", "from_name", "to_name", "value".
Region = Mapping[str, Any]
