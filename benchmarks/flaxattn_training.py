"""flaxattn's trainer as a contender of `training.py`: packed rows, a device for each core."""

import jax
from training_problem import Problem
from training_process import Count, count

from flaxattn import EncoderDecoder, keep_freed_memory
from flaxattn.text.packing import Batch
from flaxattn.text.supply import PackedPairs
from flaxattn.text.tokens import TokenizedPairs
from flaxattn.training.devices import split_cpu
from flaxattn.training.mesh import data_mesh, place
from flaxattn.training.metrics import total
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.train_step import (
    init_state,
    make_eval_step,
    make_train_step,
)
from flaxattn.translation.loss import loss_of

__all__ = ["Contender"]


class Contender:
    """What `flaxattn.training.loop.train` does between two validations."""

    trial_updates = 1

    def __init__(self, problem: Problem) -> None:
        keep_freed_memory()
        split_cpu(problem.training.batch_size)
        self._problem, self._mesh = problem, data_mesh()
        model = EncoderDecoder(problem.model, pad_id=problem.pad_id)
        self._optimizer = make_optimizer(problem.training)
        loss = loss_of(model, problem.training, problem.bos_id)
        self._step = make_train_step(loss, self._optimizer, problem.training, mesh=self._mesh)
        self._eval_step = make_eval_step(loss, mesh=self._mesh)
        self._train, valid = (self._pack(pairs) for pairs in (problem.train, problem.valid))
        self._valid = [self._place(batch) for batch in valid.all_batches()]
        self.parameters = sum(x.size for x in jax.tree.leaves(problem.params))
        self.reset()

    def reset(self) -> None:
        state = init_state(self._problem.params, self._optimizer, self._problem.training)
        self._state = place(state, self._mesh)

    def update(self, step: int) -> Count:
        batch = self._train.batch(step)
        self._state, _ = self._step(self._state, self._place(batch))
        return count(batch.source, batch.target, self._problem.pad_id)

    def wait(self) -> None:
        jax.block_until_ready(self._state)

    def validate(self) -> tuple[float, float]:
        sums = total([self._eval_step(self._state.params, batch) for batch in self._valid])
        return float(sums.others.nll), float(sums.units)

    def _pack(self, pairs: list) -> PackedPairs:
        training = self._problem.training
        batch_size, length = training.batch_size, training.sequence_length
        tokens = TokenizedPairs.of(*zip(*pairs, strict=True))
        return PackedPairs(
            tokens, batch_size=batch_size, sequence_length=length, seed=training.seed
        )

    def _place(self, batch: Batch) -> Batch:
        return place(batch, self._mesh, "data")
