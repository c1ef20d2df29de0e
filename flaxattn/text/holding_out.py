"""Pairs held out of the training text, to validate and to test, no two with the same source."""

import hashlib
import random
from collections.abc import Iterable

from flaxattn.text.pairs import Pair, StoredPairs
from flaxattn.training.screen import Tell

__all__ = ["hold_out"]

SEED = 1234  # fixed: a run's seed must not move pairs between the splits
AT_ONCE = 1 << 16  # pairs, of which all sources are in memory at once


def hold_out(
    pairs: StoredPairs, splits: int, count: int, tell: Tell
) -> tuple[StoredPairs, list[list[Pair]]]:
    """Takes `splits` lists of `count` pairs, whose sources all differ, out of `pairs`.

    Other pairs with one of these sources are in none of the lists, nor in the rest.
    """
    draw = _shuffled if len(pairs) <= AT_ONCE else _least
    sources, most = draw((source for source, _ in pairs), splits, count)
    if most == 0:
        raise ValueError(
            f"{len(pairs)} training pairs are too few to hold some out; "
            "name files with --valid and --test."
        )
    if most < count:
        tell(f"--held-out {count}: {most} pairs, a tenth of all sources, are held out for a split.")
    count = min(count, most)
    taken = {source: i // count for i, source in enumerate(sources[: count * splits])}
    targets: dict[str, list[str]] = {}  # by the order in which sources are met first
    for source, target in pairs:
        if source in taken:
            targets.setdefault(source, []).append(target)
    if copies := sum(map(len, targets.values())) - len(targets):
        tell(f"Left {copies} pairs out of training that have the source of a pair held out.")
    held_out: list[list[Pair]] = [[] for _ in range(splits)]
    for source, found in targets.items():
        held_out[taken[source]].append((source, _chosen(source, found)))
    parts = ((p for p in pairs.part(i) if p[0] not in taken) for i in range(len(pairs.parts)))
    return StoredPairs(parts, pairs.folder), held_out


def _shuffled(sources: Iterable[str], splits: int, count: int) -> tuple[list[str], int]:
    """The distinct sources in a random order, and the most to hold out: a tenth of them."""
    distinct = sorted(set(sources))
    random.Random(SEED).shuffle(distinct)
    return distinct, len(distinct) // 10


def _least(sources: Iterable[str], splits: int, count: int) -> tuple[list[str], int]:
    """As `_shuffled`, by their digests, and only so many as are asked for are in memory."""
    size = 10 * count  # with fewer it is known how many there are in all
    kept: dict[bytes, str] = {}
    bound = b"\xff" * 17
    for source in sources:
        digest = hashlib.blake2b(source.encode(), digest_size=16).digest()
        if digest < bound:
            kept[digest] = source
            if len(kept) >= 2 * size:
                kept = dict(sorted(kept.items())[:size])
                bound = max(kept)
    found = [source for _, source in sorted(kept.items())[:size]]
    return found, len(found) // 10


def _chosen(source: str, targets: list[str]) -> str:
    """One of the translations of a source, whatever their order."""
    return random.Random(f"{SEED} {source}").choice(sorted(targets))
