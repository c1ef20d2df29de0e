"""Kernels compiled for their chips on a machine that has none: for TPUs and for an H200.

Compilers for both are in the group `chips`; where one is missing its tests are skipped.
"""

import functools
import itertools
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Shape
from fused_cases import CASES, call_of, cotangents_of, fused
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh

from flaxattn import attend, causal, same_segment
from flaxattn.attention.fused.passes import kernels_of

H200 = pathlib.Path(__file__).with_name("h200.txtpb")
CHIPS = {"v5e:2x2": "tpu", "v6e:2x2": "tpu", "h200": "hopper"}
SHAPES = {
    "documents, bfloat16": Shape(B=1, T=4096, S=4096, N=2, K=1, H=128, H_value=128),
    "dropout, documents": Shape(B=2, T=200, S=600, N=4, K=2, H=64, H_value=40),
    "window of heads": Shape(B=2, T=512, S=512, N=4, K=2, H=128, H_value=128),
    "no mask, own score": Shape(B=1, T=1, S=1000, N=2, K=1, H=80, H_value=80),
    "from_dense of heads": Shape(B=1, T=400, S=600, N=2, K=1, H=64, H_value=64),
    "bias of pairs, softcap": Shape(B=2, T=400, S=600, N=4, K=2, H=64, H_value=64),
}


@pytest.fixture(autouse=True)
def programs_are_not_kept():
    """Older versions cannot write those for other devices, and warn."""
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@functools.cache
def devices_of(chip):
    jax.devices()  # else one that is not there is looked for
    if CHIPS[chip] == "tpu":
        pytest.importorskip("libtpu")
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        return topologies.get_topology_desc(platform="tpu", topology_name=chip).devices
    pytest.importorskip("jax_cuda13_plugin")
    facts = dict(topology="1x1x2", target_config=H200.read_text())
    return topologies.get_topology_desc(platform="cuda", topology_name=chip, **facts).devices


def mesh_of(chip, *sizes, **options):
    devices = np.array(devices_of(chip)[: np.prod(sizes)]).reshape(sizes)
    return jax.sharding.Mesh(devices, ("x", "y")[: len(sizes)], **options)


def like(mesh, arrays, *axes):
    """What is only to be compiled for, on a mesh."""
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.asarray(x).dtype, sharding=sharding),
        arrays,
    )


def compiled(mesh, fn, *arguments, **options):
    kind = "tpu" if mesh.devices.flat[0].platform == "tpu" else "cuda"
    with use_abstract_mesh(mesh.abstract_mesh):
        return fn.trace(*arguments, **options).lower(lowering_platforms=(kind,)).compile()


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("chip", "name"),
    [*itertools.product(("v5e:2x2", "h200"), SHAPES), ("v6e:2x2", next(iter(SHAPES)))],
)
def test_passes_compile_and_their_memory_is_linear(chip, name):
    mesh, shape, case = mesh_of(chip, 1), SHAPES[name], CASES[name]
    dtype = case.dtype if CHIPS[chip] == "tpu" else jnp.bfloat16
    case = case._replace(shape=shape, dtype=dtype)
    call, cotangents = like(mesh, (call_of(case), cotangents_of(case)))
    block_q, block_kv = kernels_of(CHIPS[chip]).block_sizes(shape.T, shape.S)
    sizes = dict(block_q=block_q, block_kv=block_kv)
    program = compiled(mesh, fused, CHIPS[chip], call, cotangents, case.rate, **sizes)
    padded = shape.B * (shape.T + shape.S + 512) * shape.N * 128
    assert program.memory_analysis().temp_size_in_bytes < 4 * 8 * padded  # float32, 8 arrays


def attended(query, key, value, ids):
    mask = causal() & same_segment(ids)
    return attend(query, key, value, mask, implementation="fused")


def layers(query, *given):
    """The same twice, each computed again for the gradient."""
    layer = jax.checkpoint(lambda x, _: (attended(x, *given), None))
    return jax.lax.scan(layer, query, None, length=2)[0]


def gradient_of(fn):
    def loss(query, key, value, ids):
        return fn(query, key, value, ids).astype(jnp.float32).sum()

    return jax.grad(loss, (0, 1, 2))


def arguments(*lead, length=512, width=64):
    x = jnp.zeros((*lead, length, 4, width), jnp.bfloat16)
    return x, x[..., :2, :], x[..., :2, :], jnp.zeros((*lead, length), jnp.int32)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("chip", ["h200", "v5e:2x2"])
def test_transformed_attention_compiles(chip):
    mesh, fn = mesh_of(chip, 1), jax.vmap(gradient_of(layers))
    compiled(mesh, jax.jit(fn), *like(mesh, arguments(3, 2)))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(("chip", "by_hand"), [("h200", True), ("h200", False), ("v5e:2x2", True)])
def test_devices_attend_in_place(chip, by_hand):
    mesh, fn, spec = mesh_of(chip, 2), gradient_of(attended), PartitionSpec("x")
    if by_hand:
        fn = jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec)
    program = compiled(mesh, jax.jit(fn), *like(mesh, arguments(2), "x"))
    assert "all-gather" not in program.as_text()


def test_tensor_cores_wait_for_nothing_and_registers_suffice(monkeypatch, capfd):
    """As NVIDIA's assembler says it of a kernel."""
    monkeypatch.setenv("MOSAIC_GPU_DUMP_PTXAS", "1")
    mesh = mesh_of("h200", 1)
    compiled(mesh, jax.jit(gradient_of(attended)), *like(mesh, arguments(1, width=128)))
    said = capfd.readouterr().out
    assert "Potential Performance Loss" not in said  # products one after the other
    spilled = dict(
        re.findall(r"properties for attention_(\w+?)_mosaic.*\n.* (\d+) bytes spill st", said)
    )
    # That of keys holds two sums: by version of jax, 100 to 220 bytes of addresses are read again.
    assert int(spilled.pop("backward_keys")) <= 256
    assert spilled == {"forward": "0", "backward_query": "0"}
