"""The kernels of TPUs compiled for one, on a machine that has none; for this libtpu is needed."""

import functools
import importlib.util
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Shape
from fused_cases import CASES, call_of, cotangents_of, fused
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh

from flaxattn import attend, causal
from flaxattn.attention.fused import tpu

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed"
)
SHAPES = {
    "documents, bfloat16": Shape(B=1, T=4096, S=4096, N=2, K=1, H=128, H_value=128),
    "dropout, documents": Shape(B=2, T=200, S=600, N=4, K=2, H=64, H_value=40),
    "window of heads": Shape(B=2, T=512, S=512, N=4, K=2, H=128, H_value=128),
    "no mask, own score": Shape(B=1, T=1, S=1000, N=2, K=1, H=80, H_value=80),
}


@pytest.fixture(autouse=True)
def programs_are_not_kept():
    """Older versions cannot write those for other devices, and warn."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@functools.cache
def topology_of(chip):
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    return topologies.get_topology_desc(platform="tpu", topology_name=chip)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("chip", ["v5e:2x2", "v6e:2x2"])
def test_passes_compile_for_a_tpu_and_their_memory_is_linear(chip, name):
    mesh, shape = jax.sharding.Mesh(np.array(topology_of(chip).devices[:1]), ("x",)), SHAPES[name]
    case = CASES[name]._replace(shape=shape)
    sharding = NamedSharding(mesh, PartitionSpec())
    call, cotangents = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype, sharding=sharding),
        (call_of(case), cotangents_of(case)),
    )
    block_q, block_kv = tpu.block_sizes(shape.T, shape.S)
    sizes = dict(block_q=block_q, block_kv=block_kv)
    with use_abstract_mesh(mesh.abstract_mesh):
        compiled = fused.lower("tpu", call, cotangents, case.rate, **sizes).compile()
    padded = shape.B * (shape.T + shape.S + 512) * shape.N * 128
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 8 * padded  # float32, 8 arrays


@pytest.mark.parametrize("spec", [PartitionSpec("x"), PartitionSpec()], ids=str)
def test_devices_attend_in_place_where_axes_of_an_explicit_mesh_are_left(spec):
    explicit = (jax.sharding.AxisType.Explicit,) * 2
    devices = np.array(topology_of("v5e:2x2").devices).reshape(2, 2)
    mesh = jax.sharding.Mesh(devices, ("x", "y"), axis_types=explicit)
    x = jax.ShapeDtypeStruct((2, 200, 2, 64), jnp.bfloat16, sharding=NamedSharding(mesh, spec))
    with use_abstract_mesh(mesh.abstract_mesh):
        attended = jax.jit(lambda x: attend(x, x, x, causal(), implementation="fused"))
        assert "all-gather" not in attended.lower(x).compile().as_text()
