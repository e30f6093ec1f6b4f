"""The projection: its kernel against a float64 loop, and the folded generator against the unfolded one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from generators import lively
from gradalign_jax.alignment import cosine_similarity
from gradalign_jax.deltax import projection
from gradalign_jax.models import biggan_folded
from gradalign_jax.ops import frozen, platform, resampling
from gradalign_jax.ops.forms import LAYOUT

# ---- the kernel


def tanh_generator(rng, classes=3, latent=5, pixels=(4, 3, 2)):
    """Return G(z, c) = tanh(A_c z + b_c), and its A and b in float64."""
    a = rng.normal(size=(classes, int(np.prod(pixels)), latent)) / latent
    b = rng.normal(size=a.shape[:2]) / 5

    def generate_fn(z, label):
        drive = jnp.einsum("bpd,bd->bp", jnp.asarray(a, z.dtype)[label], z) + jnp.asarray(b, z.dtype)[label]
        return jnp.tanh(drive).reshape(-1, *pixels)

    return generate_fn, a, b


def numpy_projection(a, b, image, target, steps, rates, penalty, eps):
    """Project as the paper describes it, pair by pair; return z and both losses (Eq. 15)."""
    found = []
    for x, c in zip(image.reshape(len(image), -1).astype(np.float64), target, strict=True):
        z = np.zeros(a.shape[2])
        for phase, weight in enumerate((0.0, penalty)):
            m, v = np.zeros_like(z), np.zeros_like(z)
            for t in range(1, steps[phase] + 1):
                y = np.tanh(a[c] @ z + b[c])
                gradient = a[c].T @ (2 * (y - x) * (1 - y**2)) / x.size + weight * 2 * z / z.size
                m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
                z = z - rates[phase] * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + eps)
        error = np.mean((np.tanh(a[c] @ z + b[c]) - x) ** 2)
        found.append((z, error, error + penalty * np.mean(z**2)))
    return tuple(map(np.stack, zip(*found, strict=True)))


def test_adam_and_loss_equal_a_float64_loop():
    rng = np.random.default_rng(0)
    generate_fn, a, b = tanh_generator(rng)
    image, target = rng.uniform(-1, 1, (6, 4, 3, 2)), np.array([0, 1, 2, 0, 1, 2])
    arguments = {"steps": (30, 12), "learning_rate": (0.1, 0.05), "penalty": 0.7}
    find = projection.make(**arguments, latent_dim=5, eps=1e-4)
    z = jax.jit(lambda image: find(generate_fn, image, target))(jnp.asarray(image, jnp.float32))
    losses = [projection.loss(generate_fn, image.astype(np.float32), target, z, penalty) for penalty in (0.0, 0.7)]
    expected = numpy_projection(a, b, image, target, (30, 12), (0.1, 0.05), 0.7, 1e-4)
    np.testing.assert_allclose(z, expected[0], atol=2e-5)
    for ours, theirs in zip(losses, expected[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    one_phase = numpy_projection(a, b, image, target, (42, 0), (0.1, 0.05), 0.7, 1e-4)[0]
    assert np.abs(z - one_phase).max() > 1e-2  # the second phase, its penalty and its fresh state matter


def test_the_fast_solver_equals_a_float64_loop():
    rng = np.random.default_rng(2)
    generate_fn, a, b = tanh_generator(rng)
    image, target = rng.uniform(-1, 1, (6, 4, 3, 2)), np.array([0, 1, 2, 0, 1, 2])
    find = projection.make_fast(20, 0.2, penalty=0.7, latent_dim=5, eps=1e-4)
    z = jax.jit(lambda image: find(generate_fn, image, target))(jnp.asarray(image, jnp.float32))
    for x, c, ours in zip(image.reshape(6, -1), target, z, strict=True):
        expected, m, v = np.zeros(5), np.zeros(5), np.zeros(5)
        for t in range(1, 21):
            y = np.tanh(a[c] @ expected + b[c])
            gradient = a[c].T @ (2 * (y - x) * (1 - y**2)) / x.size + 0.7 * 2 * expected / 5
            m, v = 0.8 * m + 0.2 * gradient, 0.95 * v + 0.05 * gradient**2
            rate = 0.2 * np.cos(np.pi * (t - 1) / 40) ** 2
            expected = expected - rate * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-4)
        np.testing.assert_allclose(ours, expected, atol=2e-5)


def test_images_by_classes_equal_flat_pairs():
    generate_fn, *_ = tanh_generator(np.random.default_rng(1))
    image = jax.random.uniform(jax.random.key(0), (4, 4, 3, 2), minval=-1)
    find = projection.make((20, 5), latent_dim=5)
    flat = jax.jit(lambda image, target: find(generate_fn, image, target))(
        jnp.repeat(image, 3, axis=0), jnp.tile(jnp.arange(3), 4)
    ).reshape(4, 3, 5)
    onto = jax.jit(lambda image, targets: projection.onto_classes(find, generate_fn, image, targets))
    chex.assert_trees_all_close(onto(image, jnp.arange(3)), flat, atol=1e-5)
    assert np.abs(np.asarray(flat[:, 0] - flat[:, 1])).max() > 0.1
    two = np.array([[0, 2], [1, 2], [2, 0], [1, 0]])  # other classes for every image
    chex.assert_trees_all_close(onto(image, two), flat[np.arange(4)[:, None], two], atol=1e-5)


# ---- the generator, folded


@pytest.fixture(scope="module")
def generator():
    return lively()


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_folded_equals_unfolded(generator, name):
    unfolded, variables = generator
    keys = jax.random.split(jax.random.key(0))
    z, label = jax.random.normal(keys[0], (5, 128)), jnp.array([0, 2, 1, 2, 0])
    cotangent = jax.random.normal(keys[1], (5, 32, 32, 3))

    def value_and_gradient(generate_fn):
        image, pull_back = jax.vjp(lambda z: generate_fn(z, label), z)
        return image, pull_back(cotangent)[0]

    with platform.target(name):
        folded = biggan_folded.fold(variables)
        ours = jax.jit(lambda: value_and_gradient(lambda z, c: biggan_folded.generate(folded, z, c)))()
    theirs = jax.jit(lambda: value_and_gradient(lambda z, c: unfolded.apply(variables, z, c)[0]))()
    assert 0.1 < np.abs(theirs[0]).mean() < 0.7  # neither dead nor saturated
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5 * np.abs(theirs[1]).max())


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("outputs", [2, 16])
@pytest.mark.parametrize("doubling", [False, True])
def test_a_frozen_convolution_and_its_transpose(name, outputs, doubling):
    rng = np.random.default_rng(outputs)
    kernel, x = rng.normal(size=(3, 3, 6, outputs)), jnp.asarray(rng.normal(size=(2, 6, 4, 6)), jnp.float32)
    with platform.target(name):
        layer = (frozen.doubling_conv3x3 if doubling else frozen.conv3x3)(kernel)

    def expected(x):
        x = resampling.double(x) if doubling else x
        return lax.conv_general_dilated(x, jnp.asarray(kernel, x.dtype), (1, 1), "SAME", dimension_numbers=LAYOUT)

    y, pull_back = jax.vjp(lambda x: frozen.apply(layer, x), x)
    y_expected, pull_back_expected = jax.vjp(expected, x)
    np.testing.assert_allclose(y, y_expected, atol=1e-5 * np.abs(y_expected).max())
    (dx,), (dx_expected,) = pull_back(y_expected), pull_back_expected(y_expected)
    np.testing.assert_allclose(dx, dx_expected, atol=1e-5 * np.abs(dx_expected).max())


def products(text):
    """Return the number of products and convolutions in the text of a StableHLO program."""
    return sum(text.count(f"stablehlo.{name}") for name in ("dot_general", "convolution"))


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_no_gradient_of_a_weight_is_computed(generator, name):
    with platform.target(name):
        folded = biggan_folded.fold(generator[1])
    z, label = jnp.zeros((7, 128)), jnp.zeros(7, jnp.int32)
    forward = jax.jit(biggan_folded.generate).lower(folded, z, label).as_text()
    backward = jax.jit(jax.grad(lambda z: biggan_folded.generate(folded, z, label).sum())).lower(z).as_text()
    # Each of the 11 layers has its transpose; upsampling by phases is 4 convolutions, its transpose 1.
    assert products(forward) > 0
    assert products(backward) == 2 * products(forward) - (9 if name == "gpu" else 0)
    find = projection.make((3, 2))
    image = jnp.zeros((7, 32, 32, 3))

    def whole(folded, image, label):
        return find(lambda z, c: biggan_folded.generate(folded, z, c), image, label)

    compiled = jax.jit(whole).lower(folded, image, label).compile().as_text()
    shapes = {f"[{','.join(map(str, leaf.shape))}]" for leaf in jax.tree.leaves(folded) if leaf.ndim > 1}
    made = [
        line.split("=")[1].split("{")[0] for line in compiled.splitlines() if " dot(" in line or "convolution(" in line
    ]
    assert made
    assert not [shape for shape in made if any(weight in shape for weight in shapes)]


@jax.jit
def find_latents(folded, image, label, steps, eps):
    """Project, in one program that several tests share."""
    find = projection.make(steps, penalty=0.03, eps=eps)
    return find(lambda z, c: biggan_folded.generate(folded, z, c), image, label)


@jax.jit
def measured(folded, image, label, z):
    def generate_fn(z, c):
        return biggan_folded.generate(folded, z, c)

    return projection.loss(generate_fn, image, label, z), projection.delta_x(generate_fn, image, label, z)


IMAGES, LABELS = jax.random.uniform(jax.random.key(2), (6, 32, 32, 3), minval=-1), np.arange(6, dtype=np.int32) % 3


def test_a_pair_does_not_depend_on_its_batch(generator):
    folded = biggan_folded.fold(generator[1])

    def run(image, label):
        return find_latents(folded, image, label, (12, 4), 1e-8)

    z = run(IMAGES, LABELS)
    assert np.abs(z).max() > 0.5
    others = run(IMAGES.at[1:].set(-IMAGES[1:]), np.zeros(6, np.int32))
    np.testing.assert_allclose(others[0], z[0], atol=1e-6)
    np.testing.assert_allclose(run(IMAGES[::-1], LABELS[::-1])[::-1], z, atol=1e-6)


def test_bfloat16_finds_almost_the_same(generator):
    """Latents found in bfloat16 and float32 have nearly the same loss under the float32 generator."""
    exact, fast = (biggan_folded.fold(generator[1], jnp.dtype(name)) for name in ("float32", "bfloat16"))
    image = jax.jit(biggan_folded.generate)(exact, jax.random.normal(jax.random.key(3), (6, 128)), LABELS)
    label = (LABELS + 1) % 3
    found = [find_latents(folded, image, label, (60, 15), 1e-8) for folded in (exact, fast)]
    (loss, vector), (fast_loss, fast_vector) = (measured(exact, image, label, z) for z in found)
    np.testing.assert_allclose(fast_loss.mean(), loss.mean(), rtol=0.05)
    assert cosine_similarity(vector, fast_vector).min() > 0.98
    assert not np.array_equal(loss, fast_loss)


def test_against_torch(generator):
    """A whole projection with equal weights as in the authors' loop: batch-mean loss, spectral norm in every step."""
    torch = pytest.importorskip("torch")
    from launch.bench.torch_peer import biggan as peer
    from launch.bench.torch_peer.projection import project as peer_project

    tensors = torch.from_numpy(np.array(IMAGES)).permute(0, 3, 1, 2), torch.from_numpy(LABELS).long()
    network = peer.load_flax(peer.Generator(3, 3, 16), generator[1])
    theirs = peer_project(network, *tensors, (6, 3), (0.1, 0.1), 0.03)
    ours = find_latents(biggan_folded.fold(generator[1]), IMAGES, LABELS, (6, 3), 6e-8)  # 1e-8 times their batch
    assert np.abs(ours).max() > 0.5
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-3)  # Adam's first steps are signs: they amplify rounding
