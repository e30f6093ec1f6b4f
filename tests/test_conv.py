"""Each form of a convolution, with first and second derivatives, against XLA's own in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from gradalign_jax.ops import forms, platform, resampling, weight_gradients
from gradalign_jax.ops.convolution import choose, choose_weights, conv, conv_transpose
from gradalign_jax.ops.window import LAYOUT, Window

# image size, inputs, outputs, kernel size, stride, padding
SHAPES = [
    ((1, 1), 3, 2, 3, 1, 1),
    ((2, 2), 3, 2, 3, 1, 1),
    ((2, 1), 3, 2, 3, 1, 1),
    ((2, 2), 3, 2, 3, 2, 1),
    ((3, 5), 2, 3, 3, 1, 1),
    ((4, 4), 2, 3, 3, 2, 1),
    ((7, 7), 2, 3, 3, 1, 1),
    ((7, 7), 2, 3, 3, 2, 1),
    ((7, 6), 2, 3, 1, 2, 0),
    ((9, 10), 3, 4, 7, 2, 3),
    ((9, 10), 1, 4, 7, 2, 3),
    ((8, 7), 4, 2, 3, 1, 1),
    ((8, 7), 24, 16, 3, 1, 1),
    ((12, 9), 2, 3, 3, 1, 1),
    ((6, 5), 2, 3, 3, 3, 2),
    ((5, 6), 2, 3, 2, 1, ((1, 0), (0, 1))),
    ((4, 4), 128, 128, 3, 1, 1),
    ((9, 9), 2, 3, 3, 1, ((0, 2), (2, 1))),
    ((9, 10), 32, 3, 3, 1, 1),
    ((6, 8), 20, 24, 4, 2, 1),
    ((7, 8), 2, 3, 4, 2, ((1, 2), (2, 1))),
    ((8, 11), 2, 3, 6, 3, 2),
]

FORMS = [forms.plain, forms.spare_row, forms.patches, forms.few_outputs, forms.dense, forms.winograd]


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def reference(x, kernel, stride, padding):
    pads = ((padding, padding),) * 2 if isinstance(padding, int) else padding
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=LAYOUT)


def arrays(image, inputs, outputs, size, batch=2):
    rng = np.random.default_rng(0)
    return jnp.array(rng.normal(size=(batch, *image, inputs))), jnp.array(
        rng.normal(size=(size, size, inputs, outputs))
    )


def gradients(function, x, kernel):
    """Return the derivatives of a sum of cubes, and of the squared norm of its input gradient."""

    def loss(x, kernel):
        return jnp.sum(function(x, kernel) ** 3)

    def penalty(x, kernel):
        return jnp.sum(jax.grad(loss)(x, kernel) ** 2)

    return jax.grad(loss, (0, 1))(x, kernel), jax.grad(penalty, (0, 1))(x, kernel)


@pytest.mark.parametrize("name", ["cpu", "gpu", "tpu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_two_derivatives(shape, name):
    image, inputs, outputs, size, stride, padding = shape
    x, kernel = arrays(image, inputs, outputs, size)
    with platform.target(name):
        value = conv(x, kernel, stride, padding)
        ours = jax.jit(lambda x, w: gradients(lambda x, w: conv(x, w, stride, padding), x, w))(x, kernel)
    np.testing.assert_allclose(value, reference(x, kernel, stride, padding), rtol=1e-9, atol=1e-9)
    theirs = jax.jit(lambda x, w: gradients(lambda x, w: reference(x, w, stride, padding), x, w))(x, kernel)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("image", [(4, 4), (7, 5)])
def test_every_form_computes_the_same(form, image):
    x, kernel = arrays(image, 3, 2, 3)
    window = Window(image, (3, 3), 1, ((1, 1), (1, 1)))
    np.testing.assert_allclose(form(window, x, kernel), reference(x, kernel, 1, 1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "form",
    [
        weight_gradients.patches,
        weight_gradients.few_outputs,
        weight_gradients.dense,
        weight_gradients.winograd,
        lambda *arguments: weight_gradients.patches(*arguments, limit=0),
    ],
)
def test_every_weight_gradient_computes_the_same(form):
    x, kernel = arrays((7, 5), 3, 2, 3)
    window = Window((7, 5), (3, 3), 1, ((1, 1), (1, 1)))
    value, pullback = jax.vjp(lambda kernel: reference(x, kernel, 1, 1), kernel)
    np.testing.assert_allclose(form(window, x, value), pullback(value)[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size, stride", [(4, 2), (3, 1)])
@pytest.mark.parametrize(
    "batch, fitting, split", [(6, 2, True), (6, 4, True), (7, 6, False), (6, 0.5, False), (2, 2, False)]
)
def test_groups_of_images_add_up(monkeypatch, size, stride, batch, fitting, split):
    """The batch is split if it has a divisor that fits; the sum is the same."""
    x, kernel = arrays((8, 8), 16, 16, size, batch=batch)
    monkeypatch.setattr(weight_gradients, "_GROUP", int(fitting * x.size / batch))
    jax.clear_caches()  # a shape is traced once
    value, pullback = jax.vjp(lambda kernel: reference(x, kernel, stride, 1), kernel)
    ours = jax.vjp(lambda kernel: conv(x, kernel, stride, 1), kernel)[1]
    bands = size == 3  # Winograd's form is a loop itself
    assert str(jax.make_jaxpr(ours)(value)).count("scan[") == split + bands
    np.testing.assert_allclose(ours(value)[0], pullback(value)[0], rtol=1e-8, atol=1e-8)


def test_taps_that_all_see_padding_give_zeros():
    x, kernel = arrays((2, 19), 2, 3, 4, batch=1)
    pads = ((3, 0), (3, 3))
    ours, theirs = (
        gradients(f, x, kernel)[0] for f in (lambda x, w: conv(x, w, 2, pads), lambda x, w: reference(x, w, 2, pads))
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("stride, size, padding", [(1, 3, 1), (2, 3, 1), (2, 4, 1), (3, 5, 0)])
def test_the_transpose(stride, size, padding, name):
    _, kernel = arrays((1, 1), 2, 3, size)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 5, 3)))
    with platform.target(name):
        ours = conv_transpose(x, kernel, stride, padding)
    of = jax.vjp(lambda y: reference(y, kernel, stride, padding), jnp.zeros_like(ours))[1]
    np.testing.assert_allclose(ours, of(x)[0], rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="2 channels"):
        conv_transpose(ours, kernel, stride, padding)


def doubled_then_convolved(x, kernel):
    return reference(x.repeat(2, 1).repeat(2, 2), kernel, 1, 1)


def convolved_then_halved(x, kernel):
    full = reference(x, kernel, 1, 1)
    return (full[:, ::2, ::2] + full[:, 1::2, ::2] + full[:, ::2, 1::2] + full[:, 1::2, 1::2]) / 4


@pytest.mark.parametrize(
    "fused, plain",
    [
        (resampling.double_then_conv, doubled_then_convolved),
        (resampling.conv_then_halve, convolved_then_halved),
    ],
)
def test_resampling_and_convolution_in_one_step(fused, plain):
    x, kernel = arrays((6, 8), 3, 2, 3)
    np.testing.assert_allclose(fused(x, kernel), plain(x, kernel), rtol=1e-9, atol=1e-9)
    ours, theirs = (gradients(form, x, kernel) for form in (fused, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9 * np.abs(b).max())


@pytest.mark.parametrize("fused", [resampling.double_then_conv, resampling.conv_then_halve])
def test_taps_are_added_up_before_they_are_rounded(fused):
    x, kernel = (a.astype("float32") for a in arrays((8, 8), 32, 32, 3))
    exact, rounded = fused(x, kernel), fused(x, kernel, jnp.bfloat16)
    error = jnp.sqrt(jnp.mean((exact - rounded) ** 2) / jnp.mean(exact**2))
    assert 1e-4 < error < 2.7e-3  # either factor is rounded once, by 2**-9 at most
    assert rounded.dtype == jnp.float32
    with pytest.raises(ValueError, match="3 x 3 taps"):
        fused(x, jnp.ones((5, 5, 32, 32)))


def test_long_sums_are_split_without_harm():
    """Few outputs and many pixels: the weight gradient of the first layers."""
    x, kernel = arrays((40, 40), 2, 3, 3, batch=12)
    value, pullback = jax.vjp(lambda kernel: reference(x, kernel, 1, 1), kernel)
    ours = jax.vjp(lambda kernel: conv(x, kernel, 1, 1), kernel)[1](value)[0]
    np.testing.assert_allclose(ours, pullback(value)[0], rtol=1e-9)


def test_float32_error_of_the_fast_forms():
    x, kernel = arrays((8, 8), 128, 128, 3)
    exact = reference(x, kernel, 1, 1)
    window = Window((8, 8), (3, 3), 1, ((1, 1), (1, 1)))
    assert choose(window, 128, 128) is forms.winograd
    ours = conv(x.astype("float32"), kernel.astype("float32"), 1, 1)
    np.testing.assert_allclose(ours, exact, atol=1e-5 * np.abs(exact).max())


def test_images_of_few_pixels_avoid_xlas_convolution():
    """XLA's convolution of an image of at most 2x2 pixels is tens of times slower than a matrix product."""
    for size in (1, 2):
        window = Window((size, size), (3, 3), 1, ((1, 1), (1, 1)))
        assert choose(window, 512, 512) is forms.dense
        assert choose_weights(window, 512, 512) is weight_gradients.dense


@pytest.mark.parametrize("name", ["gpu", "tpu"])
def test_bfloat16_reaches_two_derivatives_on_an_accelerator(name):
    """In the forward pass and two derivatives, every convolution has bfloat16 factors and result."""
    x, kernel = (a.astype("float32") for a in arrays((8, 8), 8, 8, 3))

    def rounded(x, kernel):
        return conv(x, kernel.astype(jnp.bfloat16), 2, 1)

    with platform.target(name):
        text = jax.jit(lambda x, w: gradients(rounded, x, w)).lower(x, kernel).as_text()
    lines = [line.split(" : ")[-1] for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) >= 6
    assert all(line.count("xbf16>") == 3 for line in lines)


def test_an_unknown_platform_is_refused():
    with pytest.raises(ValueError, match="use cpu, gpu or tpu"), platform.target("cuda"):
        pass


def test_the_same_under_scan_and_vmap():
    x, kernel = arrays((4, 4), 2, 2, 3)

    def step(x, _):
        return jax.grad(lambda x: jnp.sum(jnp.sin(conv(x, kernel, 1, 1))))(x), None

    looped = lax.scan(step, x, length=2)[0]
    np.testing.assert_allclose(looped, step(step(x, None)[0], None)[0], rtol=1e-9)
    mapped = jax.vmap(lambda x: step(x[None], None)[0][0])(x)
    np.testing.assert_allclose(mapped, step(x, None)[0], rtol=1e-9)


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match="3 channels"):
        conv(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 2, 2)))


@pytest.mark.parametrize("stride", [1, 2])
def test_against_torch(stride):
    torch = pytest.importorskip("torch")
    x, kernel = arrays((9, 8), 3, 4, 3)
    ours = conv(x, kernel, stride, 1)
    theirs = torch.nn.functional.conv2d(
        torch.tensor(np.asarray(x)).permute(0, 3, 1, 2),
        torch.tensor(np.asarray(kernel)).permute(3, 2, 0, 1),
        stride=stride,
        padding=1,
    )
    np.testing.assert_allclose(ours, theirs.permute(0, 2, 3, 1), rtol=1e-9, atol=1e-9)
