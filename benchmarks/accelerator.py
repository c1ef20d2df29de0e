"""The first hour on a GPU or TPU: what is right there, and how fast it is.

    python benchmarks/accelerator.py                        # all, part after part
    python benchmarks/accelerator.py --quick                # the rows that matter most, in minutes
    python benchmarks/accelerator.py --only "attention/causal H=128"   # jobs whose name starts so

Parts: correctness against float64, the matrix product that is the ceiling, sizes of blocks,
attention beside what else there is, training. Every row is written as soon as it is found, to a
JSON and a Markdown file, and another start goes on where the last one ended; what has failed is
tried again. Rows are found in processes of their own: one that hangs or breaks the device costs its
row alone.
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import accelerator_cases  # beside this file, as the next two
from accelerator_record import Record

LONGEST = 150  # seconds that a job may take
WORKER = pathlib.Path(__file__).with_name("accelerator_worker.py")
JAX = ("flaxattn fused", "flaxattn fused, plan given", "jax.nn", "tokamax", "splash")
TORCH = ("torch FlexAttention", "torch SDPA")
BLOCKS = ((128, 128), (128, 64), (128, 256), (64, 128), (192, 128), (256, 128), (256, 256))
TPU_BLOCKS = ((256, 512), (512, 512), (512, 1024), (1024, 1024))
CHECKS = (  # names in accelerator_check.py, which imports jax
    *("causal", "documents", "no mask", "window", "window of each head", "prefix per document"),
    *("ragged", "nothing is seen", "a rule of one's own", "causal, H=64", "causal, H=256", "T=1"),
    *("T=130, S=600", "float16", "own width of values", "scale", "sinks", "soft cap"),
    *("learned soft cap", "learned ALiBi", "ALiBi, documents", "dropout", "dropout and soft cap"),
    *("garbage", "garbage, window", "garbage, hidden", "garbage, ReLU"),
    *("from_dense", "from_dense, documents", "bias", "bias of keys"),
    *("bias that stays", "bias of keys that stays"),
)


class Job(NamedTuple):
    """One row that is to be found."""

    library: str  # the worker's
    part: str
    case: str
    contender: str
    kind: str  # the pass
    given: dict[str, Any]

    @property
    def name(self) -> str:
        """Which tells it from the others."""
        return "/".join(x for x in (self.part, self.case, self.contender, self.kind) if x)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """All, in order."""
    sizes = accelerator_cases.QUICK if options.quick else accelerator_cases.FULL
    sizes = accelerator_cases.TINY if options.tiny else sizes
    for check in CHECKS:
        yield Job("jax", "correctness", check, "", "", {"name": check})
    for library in ("jax", "torch"):
        yield Job(library, "ceiling", "", library, "", {"size": sizes.product})
    table = accelerator_cases.cases(sizes)
    passes = {"forward": False, "forward + backward": True}
    chosen = [
        c for c in table if c.mask in ("causal", "documents") and c.length == sizes.lengths[0]
    ]
    for case in chosen:
        for kind, backward in passes.items():
            for blocks in (*BLOCKS, *(() if options.quick else TPU_BLOCKS)):
                given = dict(zip(("block_q", "block_kv"), blocks, strict=True))
                given = {"case": case._asdict(), "backward": backward, **given}
                yield Job("jax", "blocks", case.name, "{} x {}".format(*blocks), kind, given)
    slow = () if options.quick else ("flaxattn blockwise",)
    for library, contenders in (("jax", (*JAX, *slow)), ("torch", TORCH)):
        for kind, backward in passes.items():
            for case in table:
                for contender in contenders:
                    given = {"contender": contender, "backward": backward}
                    given["case"] = case._asdict()
                    yield Job(library, "attention", case.name, contender, kind, given)
    for model in ("multi30k", "100M"):
        for implementation in ("fused", "auto", "dense"):
            given = {"model": model, "implementation": implementation, "tiny": options.tiny}
            yield Job("jax", "training", model, implementation, "", given)


class Worker:
    """A process that finds rows; see accelerator_worker.py."""

    def __init__(self, library: str, python: str) -> None:
        self.library, self._seconds = library, LONGEST
        paths = (str(WORKER.parents[1]), os.environ.get("PYTHONPATH"))  # flaxattn, installed or not
        self._process = subprocess.Popen(
            [python, str(WORKER), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            start_new_session=True,  # so that it ends with all that it has started
        )
        self._rows: queue.Queue[str] = queue.Queue()
        self._said: collections.deque[str] = collections.deque(maxlen=20)
        keeps = {self._process.stdout: self._rows.put, self._process.stderr: self._said.append}
        self._threads = [threading.Thread(target=_pour, args=pair) for pair in keeps.items()]
        for thread in self._threads:
            thread.start()
        self.about = self._row()

    def __call__(self, job: Job) -> dict[str, Any]:
        """The row of a job, or what became of it."""
        if "error" in self.about:
            return dict(self.about)
        line = json.dumps({"part": job.part, "given": job.given})
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._process.stdin, flush=True)
        return self._row()

    @property
    def ended(self) -> bool:
        """Whether it does no more."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Ends it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for thread in self._threads:
            thread.join()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _row(self) -> dict[str, Any]:
        try:
            line = self._rows.get(timeout=self._seconds)
        except queue.Empty:
            self.end()
            return {"error": f"nothing came of it in {self._seconds:.0f} s"}
        if line:
            return json.loads(line)
        code = self._process.wait()
        last = next((x.strip() for x in reversed(self._said) if x.strip()), "")
        return {"error": f"its process ended with {code}: {last}"[:500]}


class Workers:
    """One process at a time: two libraries do not share the memory of a device well."""

    def __init__(self, torch: str) -> None:
        self._torch, self._worker = torch, None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def of(self, library: str) -> Worker:
        """The one of a library, a new one if need be."""
        if self._worker is None or self._worker.library != library or self._worker.ended:
            self._end()
            self._worker = Worker(library, self._torch if library == "torch" else sys.executable)
        return self._worker

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.end()


def _pour(stream: Any, keep: Any) -> None:
    """Hands over line after line, and an empty one at the end."""
    with stream:
        for line in stream:
            keep(line)
    keep("")


def find(todo: list[Job], record: Record, options: argparse.Namespace) -> None:
    """Does the jobs of a part, until its time is over."""
    ends = time.monotonic() + 60 * options.minutes
    with Workers(options.torch) as workers:
        for i, job in enumerate(todo):
            if time.monotonic() > ends:
                print(f"{job.part}: its time is over, {len(todo) - i} rows are left for the next.")
                return
            worker = workers.of(job.library)
            if "error" not in worker.about:
                record.tell(worker.about)
            row = worker(job)
            if not row.pop("healthy", True):
                worker.end()
            named = {"part": job.part, "case": job.case, "contender": job.contender}
            record.add(job.name, named | {"pass": job.kind} | row)
            print(f"{job.name}: {_told(row)}", flush=True)


def _told(row: dict[str, Any]) -> str:
    if "error" in row:
        return row["error"]
    if "wrong" in row:
        return "; ".join(row["wrong"]) or "right"
    if "tokens_per_s" in row:
        return f"{row['tokens_per_s']:,.0f} real tokens/s"
    return f"{row['tflops']:.4g} TFLOP/s, {row['ms']:.3f} ms"


def main() -> int:
    """Finds what is missing of what was asked for, part after part; 1 if a check is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="jobs whose name, PART/CASE/..., starts so")
    parser.add_argument("--quick", action="store_true", help="the rows that matter most")
    parser.add_argument("--minutes", type=float, default=9.0, help="of a part; default %(default)s")
    parser.add_argument("--torch", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("results/accelerator"))
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # for its own test
    options = parser.parse_args()
    record, parts = Record(options.out), dict[str, list[Job]]()
    for job in jobs(options):
        if job.name.startswith(options.only) and not record.done(job.name):
            parts.setdefault(job.part, []).append(job)
    for todo in parts.values():
        find(todo, record, options)
    return int(any(row.get("wrong") for row in record.rows.values()))


if __name__ == "__main__":
    raise SystemExit(main())
