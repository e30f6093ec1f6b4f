"""The reader of compiled programs, against counts by hand."""

# ruff: noqa: E501 (lines as XLA writes them)

import jax
import jax.numpy as jnp
import numpy as np

from launch.compiled import hlo

# As XLA writes it for a GPU: a loop of 3 with cuDNN's forward convolution of stride 2 and its input gradient.
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


# For a TPU: a loop of 3, by its condition; the strided convolution's input gradient with a dilation; buffers on the chip.
TPU = """HloModule jit_f

%fused (p: bf16[2,4,4,6], q: bf16[6,3,3,4]) -> bf16[2,8,8,4] {
  %p = bf16[2,4,4,6]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %q = bf16[6,3,3,4]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %g = bf16[2,8,8,4]{3,2,1,0:T(8,128)(2,1)S(1)} convolution(%p, %q), window={size=3x3 pad=1_2x1_2 lhs_dilate=2x2 rhs_reversal=1x1}, dim_labels=b01f_i01o->b01f
}

%less (p: s32[], q: s32[]) -> pred[] {
  %p.1 = s32[]{:T(128)} parameter(0)
  %q.1 = s32[]{:T(128)} parameter(1)
  ROOT %lt = pred[]{:T(512)} compare(%p.1, %q.1), direction=LT
}

%condition (t: (s32[], bf16[2,4,4,6])) -> pred[] {
  %t.1 = (s32[]{:T(128)}, bf16[2,4,4,6]{3,2,1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t.1), index=0
  %n = s32[]{:T(128)} constant(3)
  ROOT %c = pred[]{:T(512)} fusion(%i, %n), kind=kLoop, calls=%less
}

%body (t: (s32[], bf16[2,4,4,6])) -> (s32[], bf16[2,4,4,6]) {
  %t = (s32[]{:T(128)}, bf16[2,4,4,6]{3,2,1,0}) parameter(0)
  %y = bf16[2,4,4,6]{3,2,1,0:T(8,128)(2,1)} get-tuple-element(%t), index=1
  %k = bf16[6,3,3,4]{3,2,1,0:T(8,128)(2,1)S(1)} copy(%y)
  %z = bf16[2,8,8,4]{3,2,1,0:T(8,128)(2,1)S(1)} fusion(%y, %k), kind=kOutput, calls=%fused, backend_config={"estimated_cycles":"70"}
  %w = f32[16,32]{1,0:T(8,128)S(1)} copy(%z)
  %v = f32[32,8]{1,0:T(8,128)S(1)} copy(%z)
  %d = f32[16,8]{1,0:T(8,128)S(1)} convolution(%w, %v), dim_labels=bf_io->bf, operand_precision={high,high}
  %r = f32[16,8]{1,0:T(8,128)S(1)} all-reduce-start(%d), to_apply=%less
  %s = f32[16,8]{1,0:T(8,128)S(1)} all-reduce-done(%r)
  ROOT %u = (s32[]{:T(128)}, bf16[2,4,4,6]{3,2,1,0}) tuple(%i, %y)
}

ENTRY %main (a: bf16[2,4,4,6]) -> bf16[2,4,4,6] {
  %a = bf16[2,4,4,6]{3,2,1,0} parameter(0)
  %o = (s32[]{:T(128)}, bf16[2,4,4,6]{3,2,1,0}) while(%b), condition=%condition, body=%body
  ROOT %e = bf16[2,4,4,6]{3,2,1,0} get-tuple-element(%o), index=1
}
"""


def test_counts_by_hand():
    cost = hlo.cost(TEXT)
    one = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)  # of both convolutions: 9 taps and 4 channels for each output
    assert cost.flops == {"convolution bf16 x bf16": 3 * 2 * one}
    assert cost.kernels == 3 * 3
    image, kernel, small = 2 * 2 * 8 * 8 * 4, 2 * 6 * 3 * 3 * 4, 2 * 2 * 4 * 4 * 6
    assert cost.traffic == 3 * ((image + kernel + small) + (small + kernel + image) + 2 * image)


def test_counts_a_tpu_module_by_hand():
    cost = hlo.cost(TPU, unknown=100)
    one = 2 * (2 * 4 * 4 * 6) * (3 * 3 * 4)  # the forward convolution's, without the zeros of the dilation
    assert cost.flops == {"convolution bf16 x bf16": 3 * one, "convolution f32 x f32 high": 3 * 2 * 16 * 8 * 32}
    assert cost.collectives == {"all-reduce": 3}
    assert cost.cycles == 3 * 70
    small = 2 * 2 * 4 * 4 * 6  # the one array outside the chip, read by the copy and by the fusion
    assert cost.traffic == 3 * 2 * small


def test_a_loop_without_a_constant_bound_counts_as_told():
    text = TPU.replace("constant(3)", "get-tuple-element(%t.1), index=2")
    assert hlo.cost(text, unknown=7).cycles == 7 * 70


def test_counts_the_module_that_this_machine_compiles():
    """A loop of products counts as often as it runs."""

    def f(a, b):
        return jax.lax.fori_loop(0, 5, lambda _, x: jnp.tanh(x @ b), a)

    compiled = jax.jit(f).lower(np.ones((16, 32), np.float32), np.ones((32, 32), np.float32)).compile()
    assert sum(hlo.cost(compiled.as_text(), unknown=5).flops.values()) == 5 * 2 * 16 * 32 * 32
