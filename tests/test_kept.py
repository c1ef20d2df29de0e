"""Runs and models of earlier versions, which must load for ever.

`kept/1` was written, by older names of some options, by

    python train.py tiny --output tests/kept/1 --features 8 --ff-features 8 --num-heads 2 \\
        --encoder-layers 1 --decoder-layers 1 --vocab-size 330 --builtin-pairs 300 --held-out 10 \\
        --batch-size 4 --steps 200 --valid-every 100 --warmup-steps 20 --cooldown-steps 0 \\
        --learning-rate 0.01 --ema-decay 0.9 --average 2 --keep-checkpoints 1

and `expected.json` by translating with it. TensorBoard events, StableHLO programs and the test
split are left out.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.record import run_name
from flaxattn.training.run_folder import check_folder
from flaxattn.training.storage.checkpoints import Checkpoints
from flaxattn.training.train_step import init_state
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.translator import Translator
from flaxattn.translation.initial import init_params
from flaxattn.translation.rules import RULES
from flaxattn.translation.trained.loading import load, load_exported, load_run
from flaxattn.translation.trained.record import read_run

KEPT = sorted((Path(__file__).parent / "kept").iterdir())


@pytest.fixture(params=KEPT, ids=lambda path: path.name)
def folder(request, tmp_path):
    return shutil.copytree(request.param, tmp_path / "run")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "loaded_by", [load, load_run, lambda folder: load_exported(folder / "model")]
)
def test_a_kept_model_translates_as_it_did(folder, loaded_by):
    expected = json.loads((folder / "expected.json").read_text())
    loaded = loaded_by(folder)
    greedy = loaded._replace(decoding=DecodingConfig(beam_size=1))
    found = [best[0] for best in Translator(*greedy).translate(expected["texts"])]
    assert [translation.text for translation in found] == expected["translations"]
    scores = [translation.score for translation in found]
    np.testing.assert_allclose(scores, expected["scores"], rtol=1e-4)


def test_a_kept_run_can_be_taken_further(folder):
    config = read_run(folder)
    assert (config.training.batch_size, config.training.sequence_length) == (4, 64)  # once: rows
    check_folder(config, RULES)
    model, *_ = load_run(folder)
    optimizer = make_optimizer(config.training)
    with jax.numpy_dtype_promotion("standard"):
        like = init_state(init_params(model, 0), optimizer, config.training)
    warnings = []
    with Checkpoints(
        folder / "checkpoints", keep=1, run=run_name(folder), warn=warnings.append
    ) as checkpoints:
        state, progress = checkpoints.restore_latest(like)
    assert warnings == [] and int(state.step) == config.training.steps
    assert progress["target_tokens"] > 0 and len(progress["history"]) == 2
