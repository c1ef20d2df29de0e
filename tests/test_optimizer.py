"""Muon: matrices are moved by all of their momentum's directions alike, the rest as by Adam."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_cases import tiny

from flaxattn import EncoderDecoder, EncoderDecoderConfig
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.parameters.kernels import kernels_of
from flaxattn.translation.config import TranslationTraining
from flaxattn.translation.initial import axes_of, init_params
from flaxattn.translation.trained.loading import load_run

RATE = 0.05
SETTINGS = TranslationTraining(
    optimizer="muon", muon_rate=RATE, learning_rate=0.01, warmup_steps=1, clip_norm=1e9
)
MODEL = EncoderDecoder(
    EncoderDecoderConfig(
        vocab_size=13,
        features=12,
        ff_features=20,
        num_heads=3,
        encoder_layers=1,
        decoder_layers=1,
        activation="swiglu",
        positions="learned",
        max_positions=5,
    )
)
adam = pytest.mark.usefixtures("standard_promotion")  # optax raises floats to int32 powers


@functools.cache
def parameters():
    return init_params(MODEL, 0)


def updates_of(settings, gradients):
    """What the optimizer makes of the same gradients, twice."""
    optimizer = make_optimizer(settings, parameters(), axes_of(MODEL))
    state = optimizer.init(parameters())
    for _ in range(2):
        updates, state = jax.jit(optimizer.update)(gradients, state, parameters())
    return jax.device_get(updates)


def random_gradients():
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), parameters())


def leaves_of(tree):
    return {
        "/".join(key.key for key in path): x
        for path, x in jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    }


def polynomial(sizes):
    """What five steps of Newton-Schulz make of singular values: all near 1, but for tiny ones."""
    x = sizes.astype(np.float64) / np.linalg.norm(sizes)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    return x


@adam
def test_a_kernel_moves_by_the_orthogonal_factor_of_its_momentum_and_others_by_adam():
    gradients = random_gradients()
    found = leaves_of(updates_of(SETTINGS, gradients))
    others = leaves_of(updates_of(dataclasses.replace(SETTINGS, optimizer="adamw"), gradients))
    rate = 0.5**0.5  # of the second step of warm-up's one, falling with the inverse square root
    sides = {
        "/".join(path): sides for path, sides in kernels_of(parameters(), axes_of(MODEL)).items()
    }
    kernels = {path for path in found if path.endswith("kernel")}
    assert len(kernels) == 4 * 3 + 2 * 3 and kernels < set(sides)
    for path, gradient in leaves_of(gradients).items():
        if path not in kernels:
            np.testing.assert_allclose(found[path], others[path], rtol=1e-5, err_msg=path)
            continue
        inputs, outputs = (int(np.prod(x)) for x in sides[path])
        left, sizes, right = np.linalg.svd(gradient.reshape(inputs, outputs), full_matrices=False)
        moved = -found[path].reshape(inputs, outputs) / (RATE * rate)
        moved = moved / max(1, outputs / inputs) ** 0.5
        turned = left.T @ moved @ right.T
        assert np.abs(turned - np.diag(polynomial(sizes))).max() < 1e-3, path


@adam
def test_clipping_decay_and_freezing_are_those_of_any_optimizer():
    gradients = random_gradients()
    plain = leaves_of(updates_of(SETTINGS, gradients))
    larger = jax.tree.map(lambda x: 7 * x, gradients)
    clipped = leaves_of(updates_of(dataclasses.replace(SETTINGS, clip_norm=3.0), larger))
    decayed = leaves_of(updates_of(dataclasses.replace(SETTINGS, weight_decay=0.3), gradients))
    frozen = leaves_of(updates_of(dataclasses.replace(SETTINGS, freeze=("encoder",)), gradients))
    for path, x in leaves_of(parameters()).items():
        np.testing.assert_allclose(clipped[path], plain[path], rtol=2e-3, atol=1e-5)  # no sizes
        rate = RATE if path.endswith("kernel") else SETTINGS.learning_rate
        decay = 0.3 * rate * 0.5**0.5 * x
        np.testing.assert_allclose(decayed[path], plain[path] - decay, rtol=1e-4, atol=1e-6)
        stays = path.startswith("encoder")
        np.testing.assert_allclose(frozen[path], 0 if stays else plain[path], rtol=1e-3, atol=1e-6)


def test_a_run_that_goes_on_ends_in_the_same_parameters_and_takes_no_other_optimizer(
    tmp_path, capsys
):
    muon = {"--optimizer": "muon", "--metric": "nll", "--samples": 0}
    assert tiny(tmp_path / "whole", muon) == 0
    for steps in (6, 12):
        assert tiny(tmp_path / "parts", muon | {"--steps": steps}) == 0
    assert "(0.02 for matrices)" in capsys.readouterr().out
    whole, parts = (leaves_of(load_run(tmp_path / x).params) for x in ("whole", "parts"))
    for path, x in whole.items():
        np.testing.assert_array_equal(x, parts[path], err_msg=path)
    assert tiny(tmp_path / "whole", muon | {"--optimizer": "adamw"}) == 2
    assert "optimizer" in capsys.readouterr().err


def test_what_is_no_optimizer_is_refused():
    with pytest.raises(ValueError, match="optimizer"):
        dataclasses.replace(SETTINGS, optimizer="sgd")
