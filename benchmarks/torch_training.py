"""PyTorch's `nn.Transformer` as a contender of `training.py`: bucketed by length, padded in each.

Masks are given as its documentation tells; its layers drop out where flaxattn's do. It starts from
flaxattn's parameters.
"""

import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn
from training_problem import PaddedPairs, Problem, by_length, pad
from training_process import Count, count

from flaxattn.models import EncoderDecoderConfig

__all__ = ["Contender", "Transformer"]


class Transformer(nn.Module):
    """Source and target, int [B, S] and [B, T] -> logits [B, T, V]; 0 is padding."""

    def __init__(self, config: EncoderDecoderConfig, longest: int, bos_id: int) -> None:
        super().__init__()
        self.bos_id = bos_id
        self.embedding = nn.Embedding(config.vocab_size, config.features)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.register_buffer("positions", sinusoidal(longest, config.features))
        self.transformer = nn.Transformer(
            config.features,
            config.num_heads,
            config.encoder_layers,
            config.decoder_layers,
            config.ff_features,
            config.dropout_rate,
            layer_norm_eps=1e-6,  # flax's
            batch_first=True,
            norm_first=True,
        )
        for layer in (*self.transformer.encoder.layers, *self.transformer.decoder.layers):
            layer.dropout.p = config.activation_dropout_rate
            for module in layer.modules():
                if isinstance(module, nn.MultiheadAttention):
                    module.dropout = config.attention_dropout_rate

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        length = target.shape[1]
        decoded = self.transformer(
            self._embed(source),
            self._embed(functional.pad(target[:, :-1], (1, 0), value=self.bos_id)),
            tgt_mask=torch.ones(length, length, dtype=torch.bool).triu(1),
            tgt_is_causal=True,
            src_key_padding_mask=source == 0,
            tgt_key_padding_mask=target == 0,
            memory_key_padding_mask=source == 0,
        )
        return functional.linear(decoded, self.embedding.weight)

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim)
        return self.dropout(x + self.positions[: tokens.shape[1]])


def sinusoidal(length: int, features: int) -> torch.Tensor:
    """The embedding of positions, sines first: float32 [L, D]."""
    frequencies = 10_000.0 ** -(torch.arange(0, features, 2) / features)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def state_of(params: Any) -> dict[str, torch.Tensor]:
    """flaxattn's parameters by their names here."""
    state = {"embedding.weight": params["source_embedding"]["embedding"]}
    for stack in ("encoder", "decoder"):
        for name, part in params[stack].items():
            prefix = f"transformer.{stack}.{name.replace('layer_', 'layers.')}"
            if name == "final_norm":
                state |= _norm(prefix.replace("final_norm", "norm"), part)
            else:
                state |= dict(_layer(prefix, part))
    return {name: torch.tensor(x) for name, x in state.items()}


def _layer(prefix: str, layer: Any) -> Iterator[tuple[str, np.ndarray]]:
    here = {"self_attention": "self_attn", "cross_attention": "multihead_attn"}
    attentions = [name for name in here if name in layer]
    for name in attentions:
        yield from _attention(f"{prefix}.{here[name]}", layer[name]).items()
    for i, name in enumerate([*attentions, "feed_forward"], 1):
        yield from _norm(f"{prefix}.norm{i}", layer[f"{name}_norm"]).items()
    for i, name in enumerate(("up", "down"), 1):
        yield f"{prefix}.linear{i}.weight", layer["feed_forward"][name]["kernel"].T
        yield f"{prefix}.linear{i}.bias", layer["feed_forward"][name]["bias"]


def _attention(prefix: str, attention: Any) -> dict[str, np.ndarray]:
    projections = [attention[name] for name in ("query", "key", "value")]
    features = attention["out"]["kernel"].shape[-1]
    kernels = [projection["kernel"].reshape(features, -1).T for projection in projections]
    return {
        f"{prefix}.in_proj_weight": np.concatenate(kernels),
        f"{prefix}.in_proj_bias": np.concatenate([p["bias"].reshape(-1) for p in projections]),
        f"{prefix}.out_proj.weight": attention["out"]["kernel"].reshape(-1, features).T,
        f"{prefix}.out_proj.bias": attention["out"]["bias"],
    }


def _norm(prefix: str, norm: Any) -> dict[str, np.ndarray]:
    return {f"{prefix}.weight": norm["scale"], f"{prefix}.bias": norm["bias"]}


class Contender:
    """The usual training loop.

    Args:
      compiled: whether `torch.compile` makes the loss, for shapes that vary.
    """

    def __init__(self, problem: Problem, *, compiled: bool = False) -> None:
        os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # else compile times are of luck
        warnings.filterwarnings("ignore", message="enable_nested_tensor is True")
        affinity = getattr(os, "sched_getaffinity", None)
        torch.set_num_threads(len(affinity(0)) if affinity else os.cpu_count() or 1)
        torch.manual_seed(problem.training.seed)
        self._problem, training = problem, problem.training
        self.trial_updates = 2 if compiled else 1
        self._model = Transformer(problem.model, problem.longest, problem.bos_id)
        self._compiled = torch.compile(self._loss, dynamic=True) if compiled else self._loss
        self._optimizer_of = lambda: torch.optim.AdamW(
            self._model.parameters(),
            lr=1.0,
            betas=(training.adam_b1, training.adam_b2),
            eps=1e-9,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self._train = PaddedPairs(problem, by_length)
        by_target = sorted(problem.valid, key=lambda pair: len(pair[1]))
        self._valid = [pad(by_target[i : i + 64]) for i in range(0, len(by_target), 64)]
        self.parameters = sum(p.numel() for p in self._model.parameters())
        self.reset()

    def reset(self) -> None:
        state = state_of(self._problem.params)
        self._model.load_state_dict(state | {"positions": self._model.positions})
        self._optimizer = self._optimizer_of()
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer,
            lambda step: self._problem.rates[min(step, len(self._problem.rates) - 1)],
        )

    def update(self, step: int) -> Count:
        batch = self._train.batch(step)
        source, target = (torch.from_numpy(side).long() for side in batch)
        self._model.train()
        self._optimizer.zero_grad()
        loss = self._compiled(source, target, self._problem.training.label_smoothing)
        (loss / (target != 0).sum()).backward()
        nn.utils.clip_grad_norm_(self._model.parameters(), self._problem.training.clip_norm)
        self._optimizer.step()
        self._schedule.step()
        return count(*batch, self._problem.pad_id)

    def wait(self) -> None:
        """Nothing is left to wait for on a CPU."""

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        self._model.eval()
        nll = tokens = 0.0
        for batch in self._valid:
            source, target = (torch.from_numpy(side).long() for side in batch)
            nll += float(self._loss(source, target, 0.0))
            tokens += float((target != 0).sum())
        return nll, tokens

    def _loss(self, source: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
        """The sum over target tokens."""
        logits = self._model(source, target).flatten(0, 1)
        return functional.cross_entropy(
            logits, target.flatten(), ignore_index=0, label_smoothing=smoothing, reduction="sum"
        )
