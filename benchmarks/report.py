"""What a benchmark leaves behind: a table to read and a record to repeat it from."""

import json
import pathlib
from typing import Any

__all__ = ["write"]


def write(out: pathlib.Path, record: dict[str, Any], table: str) -> None:
    """Writes `out`.json and `out`.md, making the folder if need be."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    out.with_suffix(".md").write_text(table + "\n")
