"""How many bundles of instructions a step takes on a TPU, beside splash attention's; no TPU needed.

    uv run --with libtpu python benchmarks/tpu_bundles.py

Both are compiled for a TPU, and the branches that multiply matrices are counted in the compiler's
listing. A bundle is issued in a cycle at best: the numbers are bounds, and comparable.
"""

import os
import pathlib
import re
import tempfile
from typing import Any

DUMP = tempfile.TemporaryDirectory()
os.environ |= {  # before libtpu is loaded
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={DUMP.name} --xla_jf_dump_llo_text=true",
}

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402
from jax.experimental.pallas.ops.tpu.splash_attention import (  # noqa: E402
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (  # noqa: E402
    splash_attention_mask as splash_masks,
)
from jax.sharding import NamedSharding, PartitionSpec, use_abstract_mesh  # noqa: E402

from flaxattn import causal, same_segment  # noqa: E402
from flaxattn.attention.chunks import Fixed, Inputs, Setting  # noqa: E402
from flaxattn.attention.fused import tpu  # noqa: E402
from flaxattn.attention.fused.given import Returned, columns_of, given_to, rules_of  # noqa: E402

CHIP = "v5e:2x2"
LENGTH, HEADS, WIDTH, BLOCK = 2048, 4, 128, 512
SIZES = dict(block_q=BLOCK, block_kv=BLOCK)
KERNELS = {  # of both libraries, by parts of their names
    "forward": ("attention_forward", "splash_mha_fwd"),
    "backward to queries": ("attention_backward_query", "splash_mha_dq"),
    "backward to keys": ("attention_backward_keys", "splash_mha_dkv"),
}


def ours(query: Any, key: Any, value: Any, ids: Any) -> Any:
    """All passes, of causal attention inside of documents."""
    mask = causal() & same_segment(ids)
    plan = mask.plan(LENGTH, LENGTH, **SIZES)
    setting = Setting(**SIZES, rate=0.0, has_mask=True)
    inputs = Inputs(query, key, value, None, jnp.full((1,), WIDTH**-0.5, jnp.float32))
    fixed = Fixed(mask, *map(jnp.asarray, plan.live))
    rules = rules_of(setting, inputs, fixed, derived=True)
    given = given_to(setting, inputs, fixed, rules, tpu.LANES)
    output, lse = tpu.forward(given, rules, **SIZES)
    returned = Returned(output.astype(query.dtype), lse, lse)
    d_query = tpu.backward_query(given, returned, rules, **SIZES)
    columns = columns_of(given.rows)
    return d_query, tpu.backward_keys(given, returned, rules, columns=columns, **SIZES)


def theirs(query: Any, key: Any, value: Any, ids: Any, mask: Any) -> Any:
    """All passes of splash attention, with documents if there are ids."""
    names = [f"block_{x}{y}" for x in ("q", "kv") for y in ("", "_dkv", "_dq")]
    sizes = splash.BlockSizes(
        **dict.fromkeys(names, BLOCK), block_kv_compute=BLOCK, block_kv_dkv_compute=BLOCK
    )
    kernel = splash.make_splash_mha(
        splash_masks.MultiHeadMask([mask] * HEADS), block_sizes=sizes, head_shards=1, q_seq_shards=1
    )
    documents = None if ids is None else splash.SegmentIds(ids, ids)
    output, pull = jax.vjp(lambda *xs: kernel(*xs, segment_ids=documents), query, key, value)
    return pull(output)


def compile_for(mesh: jax.sharding.Mesh, fn: Any, shape: tuple[int, ...], ids: Any) -> None:
    """Compiles `fn(query, key, value, ids)`."""
    sharding = NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    if ids is not None:
        ids = jax.ShapeDtypeStruct(ids, jnp.int32, sharding=sharding)
    with use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(fn).lower(x, x, x, ids).compile()


def steps(name: str) -> list[list[int]]:
    """The bundles of each branch that multiplies matrices, of each kernel of that name."""
    folder, found = pathlib.Path(DUMP.name), []
    for bundles in sorted(folder.glob(f"*{name}*[0-9]-final_bundles.txt")):
        listing = re.findall(
            r"^ *(0x[0-9a-f]+|0) +([A-Z:, ]*): *>* *\{(.*)$", bundles.read_text(), re.M
        )
        counts, multiplies = [0], [0]
        for _, marks, instructions in listing:
            if marks.strip():
                counts.append(0)
                multiplies.append(0)
            counts[-1] += 1
            multiplies[-1] += "vmatmul" in instructions
        found.append([n for n, m in zip(counts, multiplies, strict=True) if m > 10])
    return found


def main() -> None:
    """Compiles both and prints a table."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=CHIP)
    mesh = jax.sharding.Mesh(np.array(topology.devices[:1]), ("x",))
    compile_for(mesh, ours, (1, LENGTH, HEADS, WIDTH), (1, LENGTH))
    square, by_heads = (LENGTH, LENGTH), (HEADS, LENGTH, WIDTH)
    full, diagonal = splash_masks.FullMask(square), splash_masks.CausalMask(square)
    compile_for(mesh, lambda *xs: theirs(*xs, full), by_heads, None)
    compile_for(mesh, lambda *xs: theirs(*xs, diagonal), by_heads, (LENGTH,))
    print(f"{topology.devices[0].device_kind}, blocks of {BLOCK} x {BLOCK}, bfloat16, H = {WIDTH}")
    print("| pass | step | bundles | splash | ratio |\n|---|---|---|---|---|")
    for name, (mine, others) in KERNELS.items():
        ((partial, full_step),) = steps(mine)
        (of_full,), (of_diagonal,) = steps(others)
        for kind, a, b in (("full", full_step, of_full), ("partial", partial, of_diagonal)):
            print(f"| {name} | {kind} | {a} | {b} | {a / b:.2f} |")


if __name__ == "__main__":
    main()
