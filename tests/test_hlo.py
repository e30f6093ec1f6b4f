"""The reader of compiled programs, against counts by hand."""

# ruff: noqa: E501 (lines as XLA writes them)

import jax
import jax.numpy as jnp
import numpy as np

from launch.compile_report import hlo

# As XLA writes it for a GPU: a loop of 3 with cuDNN's forward convolution and its input gradient with stride 2.
TEXT = """HloModule jit_f

%fused (p: bf16[2,8,8,4]) -> bf16[2,8,8,4] {
  %p = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  ROOT %m = bf16[2,8,8,4]{3,2,1,0} multiply(%p, %p)
}

%body (t: (s32[], bf16[2,8,8,4], bf16[6,3,3,4])) -> (s32[], bf16[2,8,8,4], bf16[6,3,3,4]) {
  %t = (s32[], bf16[2,8,8,4]{3,2,1,0}, bf16[6,3,3,4]{3,2,1,0}) parameter(0)
  %x = bf16[2,8,8,4]{3,2,1,0} get-tuple-element(%t), index=1
  %k = bf16[6,3,3,4]{3,2,1,0} get-tuple-element(%t), index=2
  %c = (bf16[2,4,4,6]{3,2,1,0}, u8[0]{0}) custom-call(%x, %k), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %y = bf16[2,4,4,6]{3,2,1,0} get-tuple-element(%c), index=0
  %g = (bf16[2,8,8,4]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), window={size=3x3 stride=2x2}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %z = bf16[2,8,8,4]{3,2,1,0} get-tuple-element(%g), index=0
  %f = bf16[2,8,8,4]{3,2,1,0} fusion(%z), kind=kLoop, calls=%fused
  ROOT %r = (s32[], bf16[2,8,8,4]{3,2,1,0}, bf16[6,3,3,4]{3,2,1,0}) tuple(%i, %f, %k)
}

ENTRY %main (a: bf16[2,8,8,4], b: bf16[6,3,3,4]) -> bf16[2,8,8,4] {
  %a = bf16[2,8,8,4]{3,2,1,0} parameter(0)
  %b = bf16[6,3,3,4]{3,2,1,0} parameter(1)
  %w = (s32[], bf16[2,8,8,4]{3,2,1,0}, bf16[6,3,3,4]{3,2,1,0}) while(%s), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %o = bf16[2,8,8,4]{3,2,1,0} get-tuple-element(%w), index=1
}
"""


def test_counts_by_hand():
    cost = hlo.cost(TEXT)
    one = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)  # of either: 9 taps and 4 channels for each output
    assert cost.flops == {"convolution bf16 x bf16": 3 * 2 * one}
    assert cost.kernels == 3 * 3
    image, kernel, small = 2 * 2 * 8 * 8 * 4, 2 * 6 * 3 * 3 * 4, 2 * 2 * 4 * 4 * 6
    assert cost.traffic == 3 * ((image + kernel + small) + (small + kernel + image) + 2 * image)


def test_counts_what_this_machine_compiles():
    """A loop of products, as often as it runs."""

    def f(a, b):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ b), a)

    compiled = jax.jit(f).lower(np.ones((16, 32), np.float32), np.ones((32, 32), np.float32)).compile()
    assert sum(hlo.cost(compiled.as_text(), unknown=5).flops.values()) == 5 * 2 * 16 * 32 * 32
