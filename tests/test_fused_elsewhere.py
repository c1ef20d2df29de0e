"""Programs for other platforms than that of the chip: loops do there what kernels do on it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_cases import CASES, call_of
from jax import export

from flaxattn import attend, causal, lengths
from flaxattn.attention.fused import attend as fused
from flaxattn.attention.fused.chip import PLATFORMS
from flaxattn.attention.options import Options

CHIPS = pytest.mark.parametrize("chip", PLATFORMS)
KERNEL = {"hopper": "mosaic_gpu", "tpu": "tpu_custom_call"}  # what a program calls it


@pytest.fixture
def on(monkeypatch):
    """Makes calls as where there is a chip, and yet programs for the CPU."""

    def on(chip):
        monkeypatch.setattr(fused, "chip", lambda: chip)
        call = call_of(CASES["empty rows, sinks, softcap"])
        dtype = jnp.float32 if chip == "tpu" else jnp.bfloat16
        arrays = [x.astype(dtype) for x in call[:3]]
        if fused.why_not_fused(*arrays, None, Options()) is not None:
            pytest.skip("this jax has not what its kernels need")
        return arrays, call

    return on


def program(implementation, mask, **options):
    """The sum of a wave of the output, and its gradients."""

    def loss(query, key, value):
        output = attend(query, key, value, mask, implementation=implementation, **options)
        return jnp.sin(output.astype(jnp.float32)).sum()

    return jax.jit(jax.value_and_grad(loss, (0, 1, 2)))


def assert_alike(actual, expected):
    for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        assert a.dtype == e.dtype
        a, e = (np.asarray(x, np.float32) for x in (a, e))
        assert np.linalg.norm(a - e) <= 1e-2 * np.linalg.norm(e)


@CHIPS
def test_a_cpu_beside_the_chip_has_loops(on, chip):
    arrays, call = on(chip)
    options = {"score": call.score, "sinks": call.sinks}
    run = program("fused", call.mask, **options)
    assert KERNEL[chip] not in run.lower(*arrays).as_text()
    assert_alike(run(*arrays), program("dense", call.mask, **options)(*arrays))


@CHIPS
@pytest.mark.parametrize("pull", [False, True])
def test_loops_hide_what_is_not_finite_as_kernels_would(on, chip, pull):
    """Some are given it as it is; along a direction, and twice, derivatives are those of loops."""
    (query, key, value), _ = on(chip)
    arrays = (
        query.at[0, 3, 1, 2].set(jnp.inf),
        key.at[0, 230].set(jnp.nan),
        value.at[1, 205, 1, 0].set(-jnp.inf),
    )
    rng = np.random.default_rng(3)
    along = tuple(jnp.asarray(rng.standard_normal(x.shape), x.dtype) for x in arrays)

    def found(implementation):
        def attended(*arrays):
            return attend(*arrays, causal().shift(200, 0), implementation=implementation)

        def pulled(*arrays):
            output, back = jax.vjp(attended, *arrays)
            return back(jnp.ones_like(output))

        return jax.jit(lambda *given: jax.jvp(pulled if pull else attended, given, along))(*arrays)

    pairs = zip(*map(jax.tree.leaves, (found("fused"), found("dense"))), strict=True)
    for x, y in pairs:
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        np.testing.assert_array_equal(np.isnan(x), np.isnan(y))
        assert np.isfinite(y).any() or pull
        x, y = (np.where(np.isnan(z), 0.0, z) for z in (x, y))
        assert np.linalg.norm(x - y) <= 3e-2 * np.linalg.norm(y)


@CHIPS
def test_a_query_that_sees_nothing_adds_nothing_to_the_gradient_of_a_scale(on, chip):
    (query, key, value), _ = on(chip)
    query = query.at[0, -1].set(jnp.inf)

    def gradient(implementation):
        def loss(scale):
            mask = lengths(query.shape[1] - 1, key.shape[1])
            options = {"scale": scale, "implementation": implementation}
            return attend(query, key, value, mask, **options).astype(jnp.float32).sum()

        return jax.jit(jax.grad(loss))(jnp.float32(0.3))

    np.testing.assert_allclose(gradient("fused"), gradient("dense"), rtol=3e-2)


@CHIPS
def test_several_axes_are_vmapped_there_as_well(on, chip):
    arrays, call = on(chip)
    arrays = [jnp.stack([x, 2 * x]) for x in arrays]
    actual, expected = (
        jax.jit(jax.vmap(program(name, call.mask)))(*arrays) for name in ("fused", "dense")
    )
    assert_alike(actual, expected)


def test_a_program_exported_for_several_platforms_has_the_kernel_for_one(on):
    arrays, _ = on("tpu")
    run = program("fused", causal())
    exported = export.export(run, platforms=("cpu", "tpu"))(*arrays)
    for_one = export.export(run, platforms=("tpu",))(*arrays)
    kernels = [text.mlir_module().count(KERNEL["tpu"]) for text in (exported, for_one)]
    assert kernels == [3, 3]  # forward, and the gradients of queries, and of keys and values
    assert_alike(exported.call(*arrays), program("dense", causal())(*arrays))
    for_cpu = export.export(run, platforms=("cpu",))(*arrays)
    assert KERNEL["tpu"] not in for_cpu.mlir_module()
