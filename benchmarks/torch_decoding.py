"""PyTorch's `nn.Transformer` as a contender of `decoding.py`: the loop of the tutorials."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch_training import Transformer, state_of

__all__ = ["usual_loop"]

PAD, BOS, EOS = 0, 1, 2


def usual_loop(problem: Any, beam_size: int) -> Callable[[], np.ndarray]:
    """Greedy search, or beams, over prefixes that grow by a token; the encoder runs once."""
    affinity = getattr(os, "sched_getaffinity", None)
    torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count() or 1)
    longest = max(problem.length, problem.source.shape[1])
    model = Transformer(problem.config, longest, BOS).eval()
    model.load_state_dict(state_of(problem.params) | {"positions": model.positions})
    source = torch.from_numpy(problem.source).long()

    @torch.no_grad()
    def run() -> np.ndarray:
        memory = model.transformer.encoder(model._embed(source))
        prefixes = torch.full((len(source), 1), BOS)
        if beam_size == 1:
            for index in range(problem.length):
                scores = _next(model, prefixes, memory, index == problem.length - 1)
                prefixes = torch.cat([prefixes, scores.argmax(dim=-1, keepdim=True)], dim=1)
            return prefixes[:, 1:].numpy()
        return _beams(model, prefixes, memory, beam_size, problem.length)

    return run


def _beams(
    model: Transformer, prefixes: torch.Tensor, memory: torch.Tensor, beams: int, length: int
) -> np.ndarray:
    batch = len(prefixes)
    memory = memory.repeat_interleave(beams, dim=0)
    prefixes = prefixes.repeat_interleave(beams, dim=0)
    live = torch.full((batch, beams), -torch.inf)
    live[:, 0] = 0.0
    for index in range(length):
        scores = _next(model, prefixes, memory, index == length - 1).log_softmax(dim=-1)
        total = (live[..., None] + scores.view(batch, beams, -1)).flatten(1)
        live, where = total.topk(beams, dim=1)
        parents = where // scores.shape[-1] + torch.arange(batch)[:, None] * beams
        tokens = (where % scores.shape[-1]).view(-1, 1)
        prefixes = torch.cat([prefixes[parents.view(-1)], tokens], dim=1)
    return prefixes.view(batch, beams, -1)[:, 0, 1:].numpy()


def _next(
    model: Transformer, prefixes: torch.Tensor, memory: torch.Tensor, last: bool
) -> torch.Tensor:
    """Logits [R, V] of the next token: the end token when it is the last one, and not before."""
    length = prefixes.shape[1]
    decoded = model.transformer.decoder(
        model._embed(prefixes),
        memory,
        tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
        tgt_is_causal=True,
    )
    logits = functional.linear(decoded[:, -1], model.embedding.weight)
    if last:
        only = torch.full_like(logits, -torch.inf)
        only[:, EOS] = 0.0
        return only
    logits[:, [PAD, BOS, EOS]] = -torch.inf
    return logits
