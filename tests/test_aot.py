"""Attention by blocks compiled for TPUs that are not there: it lowers, and in how much memory.

Runs where `libtpu` is installed (`pip install libtpu`) and is skipped elsewhere.
"""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("libtpu")

# In a process of its own: the compiler for TPUs reads its environment when it is first used.
PROGRAM = """
import json, sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies

from flaxattn import attend, causal, same_segment

topology = topologies.get_topology_desc(platform="tpu", topology_name=sys.argv[1])
mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("x",))
sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def forward(query, key, value, ids):
    mask = causal() & same_segment(ids)
    return attend(query, key, value, mask, implementation="blockwise")


def backward(query, key, value, ids, cotangent):
    return jax.vjp(lambda *x: forward(*x, ids), query, key, value)[1](cotangent)


def temporaries(fn, length):
    x = jax.ShapeDtypeStruct((1, length, 4, 128), jnp.bfloat16, sharding=sharding)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32, sharding=sharding)
    arguments = (x, x, x, ids, x) if fn is backward else (x, x, x, ids)
    compiled = jax.jit(fn).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


print(json.dumps([[temporaries(fn, n) for n in (4096, 8192)] for fn in (forward, backward)]))
"""


@pytest.mark.parametrize("topology", ["v5e:2x2", "v6e:2x2"])
def test_it_compiles_for_tpus_and_its_memory_grows_with_the_lengths(topology):
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = os.environ | {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no TPU is taken: nothing to lock
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": root,
    }
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, topology],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    print(topology, process.stdout)
    for small, large in json.loads(process.stdout.splitlines()[-1]):  # forward, backward
        assert 0 < small
        assert large <= 2.1 * small
        assert large < 8192 * 8192 * 2 / 16  # far below the logits of a single head
