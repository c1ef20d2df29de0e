"""A process that does what `accelerator.py` hands it, so that nothing that fails ends the rest.

    python benchmarks/accelerator_worker.py jax

reads jobs, a line of JSON each, and writes a line of JSON for each row; one that failed says
whether the device is able to go on.
"""

import importlib
import json
import os
import sys
from typing import Any

from accelerator_cases import Case

__all__ = ["do"]


def do(library: Any, job: dict[str, Any]) -> dict[str, Any]:
    """The row of a job."""
    part, given = job["part"], job["given"]
    if part == "ceiling":
        return library.product(**given)
    if part == "correctness":
        return importlib.import_module("accelerator_check").check(**given)
    if part == "training":
        return importlib.import_module("accelerator_training").trained(**given)
    case = Case(**given.pop("case"))
    return (library.blocks if part == "blocks" else library.attention)(case, **given)


def main() -> None:
    """Says what there is, then does job after job."""
    rows = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no row
    library = importlib.import_module(f"accelerator_{sys.argv[1]}")
    print(json.dumps(library.about()), file=rows, flush=True)
    for line in sys.stdin:
        try:
            row = do(library, json.loads(line))
        except Exception as error:
            row = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}
            row["healthy"] = library.healthy()
        print(json.dumps(row), file=rows, flush=True)


if __name__ == "__main__":
    main()
