"""Training state on disk: numbered states in a directory, and JSON files beside them."""

from modulekit.checkpoints.files import check_writable, read_json, write_json
from modulekit.checkpoints.store import CheckpointStore

__all__ = ["CheckpointStore", "check_writable", "read_json", "write_json"]
