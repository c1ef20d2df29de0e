"""Beams in groups that differ: diverse beam search, Vijayakumar et al. (2016, arXiv:1610.02424)."""

import jax
import jax.numpy as jnp

from flaxattn.search.candidates import Candidates, expand
from flaxattn.search.constraints import Choice
from flaxattn.search.rules import Groups, Rules

__all__ = ["expand_groups"]


def expand_groups(
    logits: jax.Array,
    live: jax.Array,
    index: jax.Array,
    rules: Rules,
    choice: Choice | None,
    groups: Groups,
) -> Candidates:
    """As `expand`, of one group after another; those of a group stand together, in order."""
    if groups.number == 1:
        return expand(logits, live, index, rules, choice)
    batch, beams, vocab_size = logits.shape
    size, found = beams // groups.number, list[Candidates]()
    cost = jnp.zeros((batch, vocab_size), jnp.float32)
    for start in range(0, beams, size):
        mine = slice(start, start + size)
        of_group = choice and Choice(
            choice.allowed[:, mine],
            None if choice.missing is None else choice.missing[:, mine],
            choice.most_missing,
        )
        one = expand(logits[:, mine], live[:, mine], index, rules, of_group, cost)
        found.append(one._replace(parents=one.parents + start))
        taken = jnp.where(jnp.isneginf(one.log_probs), 0.0, jnp.asarray(groups.diversity))
        cost = cost.at[jnp.arange(batch)[:, None], one.tokens].add(taken)
    broken = jnp.stack([one.broken for one in found]).any(axis=0)
    together = jax.tree.map(lambda *x: jnp.concatenate(x, axis=-1), *found)
    return together._replace(broken=broken)
