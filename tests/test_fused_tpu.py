"""The kernels of TPUs in the interpreter, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_cases import CASES, call_of, cotangents_of, dense, fused

from flaxattn.attention.fused import tpu


@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_the_definition(name):
    case = CASES[name]
    call, cotangents = call_of(case), cotangents_of(case)
    expected = dense(call, cotangents, case.rate)
    sizes = dict(block_q=16, block_kv=128)
    actual = fused(tpu, call, cotangents, case.rate, interpret=True, **sizes)
    narrow = case.dtype == jnp.bfloat16
    for part, a, e in zip(actual._fields, actual, expected, strict=True):
        a, e = (np.asarray(x, np.float32) for x in (a, e))
        size = np.abs(np.where(np.isfinite(e), e, 0)).max(initial=1.0)
        np.testing.assert_allclose(
            a, e, rtol=0, atol=(2e-2 if narrow else 1e-5) * size, err_msg=part
        )
