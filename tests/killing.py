"""Kills a training process again and again, and looks whether its end is the same to the byte.

    python tests/killing.py --kills 50

Each life of the process is ended with SIGKILL: while it starts, while it trains, or while it writes
a checkpoint; or with SIGTERM twice at once, as parents that forward it do, upon which it must have
kept its step. Then the same command is given again, until the run has ended by itself, which early
stopping decides. Its parameters, optimizer state, moving average, log and translations are compared
with those of a run that nobody disturbed.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

ROOT = Path(__file__).parent.parent
KEPT = 75  # the exit code of training that was asked to stop
MOMENTS = ["starting", "training", "writing", "writing", "asked", "asked"]  # of lives, in turn
OPTIONS = """
    --features 16 --ff-features 16 --num-heads 2 --encoder-layers 1 --decoder-layers 1
    --dropout-rate 0.1 --vocab-size 400 --builtin-pairs 300 --held-out 8
    --batch-size 4 --sequence-length 64 --warmup-steps 50 --r-drop 0.5 --subword-dropout 0.1
    --ema-decay 0.9 --average 2 --log-every 7 --valid-every 10 --samples 1 --beam-size 1
    --microbatches 2 --learning-rate 0.03 --metric chrf --patience 4
""".split()


def train(folder: Path, steps: int) -> subprocess.Popen:
    """A process that trains in a folder, begun."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder.parent / "programs")}
    command = [sys.executable, "train.py", "tiny", "--output", str(folder), "--steps", str(steps)]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        return subprocess.Popen(
            [*command, *OPTIONS], cwd=ROOT, env=os.environ | cache, stdout=log, stderr=log
        )


def live(folder: Path, steps: int, when: str, chance: random.Random, startup: float) -> int:
    """One process, from its start until it is killed or asked to stop, or has ended: its code."""
    process = train(folder, steps)
    before = size_of_log(folder)
    if when == "starting":
        wait(process, lambda: False, chance.uniform(0, startup))
    elif when == "writing":
        wait(process, lambda: is_writing(folder))
        wait(process, lambda: False, chance.uniform(0, 0.1))
    else:
        wait(process, lambda: size_of_log(folder) != before)
        wait(process, lambda: False, chance.uniform(0, 1.5))
    for _ in range(2 if when == "asked" else 1):
        process.send_signal(signal.SIGTERM if when == "asked" else signal.SIGKILL)
    return process.wait()


def wait(process: subprocess.Popen, until, seconds: float = 600.0) -> None:
    """Waits for something, for the end of the process, or for a time to pass."""
    end = time.monotonic() + seconds
    while process.poll() is None and not until() and time.monotonic() < end:
        time.sleep(0.002)


def size_of_log(folder: Path) -> int:
    log = folder / "log.jsonl"
    return log.stat().st_size if log.exists() else -1


def is_writing(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):  # folders come and go meanwhile
        return any(folder.glob("*/*.partial"))
    return False


def outcome(folder: Path) -> dict[str, str]:
    """All that must be the same, by name, as SHA-256."""
    found = {
        name: (folder / name).read_bytes()
        for name in ("log.jsonl", "test.hypothesis", "tokenizer.model", "model/model.safetensors")
    }
    for kind, most in (("checkpoints", 1), ("models", None)):
        # A state that was asked for takes the place of an older one: the last is to be the same.
        steps = sorted((folder / kind).iterdir(), key=lambda step: int(step.name), reverse=True)
        for step in steps[:most]:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as orbax:
                state = orbax.restore(step / "state")
            found |= leaves(f"{kind}/{step.name}", state)
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


def leaves(path: str, tree) -> dict[str, bytes]:
    """The bytes of every array of nested dictionaries and lists, by path."""
    if isinstance(tree, dict | list | tuple):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        return {k: v for name, part in items for k, v in leaves(f"{path}/{name}", part).items()}
    return {} if tree is None else {path: np.asarray(tree).tobytes()}


def kill_runs(place: Path, *, kills: int, steps: int, seed: int, say=print) -> list[str]:
    """Kills processes of one run after another, and gives what differs at their ends."""
    chance, differing, killed = random.Random(seed), [], 0
    undisturbed, began = train(place / "whole", steps), time.monotonic()
    wait(undisturbed, lambda: size_of_log(place / "whole") > 0)
    startup = time.monotonic() - began
    assert undisturbed.wait() == 0, (place / "whole.log").read_text()
    expected, whole = outcome(place / "whole"), size_of_log(place / "whole")
    lives, runs = itertools.cycle(MOMENTS), itertools.count(1)
    while killed < kills:
        folder, moments = place / f"killed-{next(runs)}", []
        while killed + len(moments) < kills:
            when = next(lives)
            code = live(folder, steps, when, chance, startup)
            if code == 0:
                break
            moments.append(when)
            # SIGTERM is a request while it trains; after that it ends the process.
            asked = {KEPT} | ({-signal.SIGTERM} if size_of_log(folder) == whole else set())
            allowed = asked if when == "asked" else {-signal.SIGKILL}
            assert code in allowed, (when, code, (place / f"{folder.name}.log").read_text())
        else:
            assert train(folder, steps).wait() == 0, (place / f"{folder.name}.log").read_text()
        killed += len(moments)
        found = outcome(folder)
        wrong = [n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n)]
        parts = sorted({"/".join(name.split("/")[:3]) for name in wrong})
        differing += [f"{folder.name}: {part}" for part in parts]
        counts = {when: moments.count(when) for when in sorted(set(moments))}
        say(f"{killed} kills; this run {counts}; {len(wrong)} of {len(expected)} parts differ")
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=400, help="of each run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--result", type=Path, help="a JSON file to keep the result in")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        given = {name: getattr(arguments, name) for name in ("kills", "steps", "seed")}
        differing = kill_runs(Path(place), **given)
    print(
        "\n".join(differing) or f"All runs ended in the same bytes after {arguments.kills} kills."
    )
    if arguments.result:
        arguments.result.write_text(json.dumps(given | {"differing": differing}, indent=2) + "\n")
    return bool(differing)


if __name__ == "__main__":
    sys.exit(main())
