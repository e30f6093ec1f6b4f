"""The projection: its kernel against a float64 loop, the folded generator, and whole runs of the task."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.compilation_cache import compilation_cache

from configs import mnist, squares32
from gradalign_jax import data, settings, store, weights
from gradalign_jax.alignment import cosine_similarity
from gradalign_jax.deltax import projection
from gradalign_jax.models import biggan, biggan_folded, frozen, resampling
from gradalign_jax.models.lowering import LAYOUT
from gradalign_jax.store import Store
from gradalign_jax.tasks import estimates, project
from gradalign_jax.workdir import RunError, Workdir


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """Runs of the same program, which is most of them here, take it from a cache as real ones do."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("xla")), 0.0), strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


# ---- the kernel


def tanh_generator(rng, classes=3, latent=5, pixels=(4, 3, 2)):
    """G(z, c) = tanh(A_c z + b_c), and the float64 arrays it is made of."""
    a = rng.normal(size=(classes, int(np.prod(pixels)), latent)) / latent
    b = rng.normal(size=a.shape[:2]) / 5

    def generate_fn(z, label):
        drive = jnp.einsum("bpd,bd->bp", jnp.asarray(a, z.dtype)[label], z) + jnp.asarray(b, z.dtype)[label]
        return jnp.tanh(drive).reshape(-1, *pixels)

    return generate_fn, a, b


def numpy_projection(a, b, image, target, steps, rates, penalty, eps):
    """The algorithm as the paper has it, pair by pair; returns z and both losses (Eq. 15)."""
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
    assert np.abs(z - one_phase).max() > 1e-2  # the second phase, its penalty and its fresh state do matter


def test_all_classes_are_one_flat_batch_and_what_vmap_gives():
    generate_fn, *_ = tanh_generator(np.random.default_rng(1))
    image = jax.random.uniform(jax.random.key(0), (4, 4, 3, 2), minval=-1)
    find = projection.make((20, 5), latent_dim=5)
    flat = jax.jit(lambda image: projection.project_all(find, generate_fn, image, 3))(image)
    mapped = jax.vmap(lambda c: find(generate_fn, image, jnp.full(4, c)), out_axes=1)(jnp.arange(3))
    chex.assert_trees_all_close(flat, mapped, atol=1e-5)
    assert np.abs(np.asarray(flat[:, 0] - flat[:, 1])).max() > 0.1


# ---- the generator, folded


def lively(classes=3, channels=3, width=16, seed=0):
    """A generator whose statistics, gains and biases all matter, as a trained one's do."""
    rng = np.random.default_rng(seed)
    drawn = {
        **dict.fromkeys(("gain", "bias", "mean"), lambda shape: rng.normal(0, 0.2, shape)),
        "var": lambda shape: rng.uniform(0.5, 2, shape),
        "scale": lambda shape: rng.uniform(-1.5, 1.5, shape),
        **dict.fromkeys(("kernel", "u"), rng.standard_normal),
    }
    generator = biggan.create_generator(classes, channels, width=width)
    shapes = jax.eval_shape(generator.init, jax.random.key(0))
    draw = jax.tree_util.tree_map_with_path
    return generator, draw(lambda path, leaf: drawn[path[-1].key](leaf.shape).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def generator():
    return lively()


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_folded_is_unfolded(generator, backend):
    unfolded, variables = generator
    folded = biggan_folded.fold(variables, backend=backend)
    keys = jax.random.split(jax.random.key(0))
    z, label = jax.random.normal(keys[0], (5, 128)), jnp.array([0, 2, 1, 2, 0])
    cotangent = jax.random.normal(keys[1], (5, 32, 32, 3))

    def value_and_gradient(generate_fn):
        image, pull_back = jax.vjp(lambda z: generate_fn(z, label), z)
        return image, pull_back(cotangent)[0]

    ours = jax.jit(lambda: value_and_gradient(lambda z, c: biggan_folded.generate(folded, z, c)))()
    theirs = jax.jit(lambda: value_and_gradient(lambda z, c: unfolded.apply(variables, z, c)[0]))()
    assert 0.1 < np.abs(theirs[0]).mean() < 0.7  # neither dead nor saturated
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5 * np.abs(theirs[1]).max())


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("outputs", [2, 16])
@pytest.mark.parametrize("doubling", [False, True])
def test_a_frozen_convolution_and_its_transpose(backend, outputs, doubling):
    rng = np.random.default_rng(outputs)
    kernel, x = rng.normal(size=(3, 3, 6, outputs)), jnp.asarray(rng.normal(size=(2, 6, 4, 6)), jnp.float32)
    layer = (frozen.doubling_conv3x3 if doubling else frozen.conv3x3)(kernel, backend=backend)

    def expected(x):
        x = resampling.double(x) if doubling else x
        return lax.conv_general_dilated(x, jnp.asarray(kernel, x.dtype), (1, 1), "SAME", dimension_numbers=LAYOUT)

    y, pull_back = jax.vjp(lambda x: frozen.apply(layer, x), x)
    y_expected, pull_back_expected = jax.vjp(expected, x)
    np.testing.assert_allclose(y, y_expected, atol=1e-5 * np.abs(y_expected).max())
    (dx,), (dx_expected,) = pull_back(y_expected), pull_back_expected(y_expected)
    np.testing.assert_allclose(dx, dx_expected, atol=1e-5 * np.abs(dx_expected).max())


def products(text):
    """The contractions of a program in StableHLO: products and convolutions, once for each place they stand."""
    return sum(text.count(f"stablehlo.{name}") for name in ("dot_general", "convolution"))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_no_gradient_of_a_weight_is_computed(generator, backend):
    folded = biggan_folded.fold(generator[1], backend=backend)
    z, label = jnp.zeros((7, 128)), jnp.zeros(7, jnp.int32)
    forward = jax.jit(biggan_folded.generate).lower(folded, z, label).as_text()
    backward = jax.jit(jax.grad(lambda z: biggan_folded.generate(folded, z, label).sum())).lower(z).as_text()
    # Each of the 11 layers has its transpose; a doubling by phases is 4 convolutions, its transpose one.
    assert products(forward) > 0
    assert products(backward) == 2 * products(forward) - (9 if backend == "gpu" else 0)
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
    """One program for several tests."""
    find = projection.make(steps, penalty=0.03, eps=eps)
    return find(lambda z, c: biggan_folded.generate(folded, z, c), image, label)


@jax.jit
def measured(folded, image, label, z):
    def generate_fn(z, c):
        return biggan_folded.generate(folded, z, c)

    return projection.loss(generate_fn, image, label, z), projection.delta_x(generate_fn, image, label, z)


IMAGES, LABELS = jax.random.uniform(jax.random.key(2), (6, 32, 32, 3), minval=-1), np.arange(6, dtype=np.int32) % 3


def test_a_pair_does_not_depend_on_those_beside_it(generator):
    folded = biggan_folded.fold(generator[1])

    def run(image, label):
        return find_latents(folded, image, label, (12, 4), 1e-8)

    z = run(IMAGES, LABELS)
    assert np.abs(z).max() > 0.5
    others = run(IMAGES.at[1:].set(-IMAGES[1:]), np.zeros(6, np.int32))
    np.testing.assert_allclose(others[0], z[0], atol=1e-6)
    np.testing.assert_allclose(run(IMAGES[::-1], LABELS[::-1])[::-1], z, atol=1e-6)


def test_bfloat16_finds_almost_the_same(generator):
    """What bfloat16 costs, both measured with the float32 generator."""
    exact, fast = (biggan_folded.fold(generator[1], precision) for precision in ("float32", "bfloat16"))
    image = jax.jit(biggan_folded.generate)(exact, jax.random.normal(jax.random.key(3), (6, 128)), LABELS)
    label = (LABELS + 1) % 3
    found = [find_latents(folded, image, label, (60, 15), 1e-8) for folded in (exact, fast)]
    (loss, vector), (fast_loss, fast_vector) = (measured(exact, image, label, z) for z in found)
    np.testing.assert_allclose(fast_loss.mean(), loss.mean(), rtol=0.05)
    assert cosine_similarity(vector, fast_vector).min() > 0.98
    assert not np.array_equal(loss, fast_loss)


def test_against_torch(generator):
    """A whole projection with equal weights, as the authors' loop does it: mean over the batch, spectral norm anew."""
    torch = pytest.importorskip("torch")
    from launch.torch_peer import biggan as peer
    from launch.torch_peer.projection import project as peer_project

    tensors = torch.from_numpy(np.array(IMAGES)).permute(0, 3, 1, 2), torch.from_numpy(LABELS).long()
    network = peer.load_flax(peer.Generator(3, 3, 16), generator[1])
    theirs = peer_project(network, *tensors, (6, 3), (0.1, 0.1), 0.03)
    ours = find_latents(biggan_folded.fold(generator[1]), IMAGES, LABELS, (6, 3), 6e-8)  # 1e-8 times their batch
    assert np.abs(ours).max() > 0.5
    np.testing.assert_allclose(ours, theirs.numpy(), atol=2e-3)  # Adam's first steps are signs: they amplify rounding


# ---- the task

LIMIT, BLOCK = 6, 8


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory):
    """A directory as a finished gan run of Squares32 leaves it."""
    return write_generator(tmp_path_factory.mktemp("gan"))


def write_generator(path, dataset="squares32", classes=2, channels=1, seed=0):
    variables = lively(classes, channels, width=8, seed=seed)[1]
    described = {"num_classes": classes, "channels": channels, "width": 8, "latent_dim": 128, "dataset": dataset}
    weights.write(path / "generator.safetensors", {"raw": variables, "ema": variables}, **described)
    return path


def small(gan_run, **changes):
    config = squares32.get_config("project,smoke")
    config.project.generator = str(gan_run)
    config.data.limit, config.devices = LIMIT, 1
    config.project.steps, config.project.block = (3, 2), BLOCK
    config.update_from_flattened_dict(changes)
    settings.check(config)
    return config


def start(path, config):
    workdir = Workdir(path, config.to_dict())
    try:
        return project.run(config, workdir)
    finally:
        workdir.close()


def content(path):
    return {file.name: file.read_bytes() for file in (path / "store").iterdir()}


@pytest.fixture(scope="module")
def finished(gan_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("project")
    return path, start(path, small(gan_run))


def test_a_run_leaves_its_store_result_and_picture(finished):
    path, result = finished
    assert len(content(path)) == 1 + 3  # 2 * 6 images * 2 classes in blocks of 8
    assert result["pairs"] == 2 * LIMIT * 2
    assert result["traces"] == 1  # over all shards
    assert json.loads((path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert (path / "projections.png").stat().st_size > 0
    with np.load(path / "pictures.npz") as pictures:  # as the report reads them: here all 6 test images
        label, image = pictures["label"], pictures["image"]
        vectors = pictures["projected"][np.arange(LIMIT), 1 - label] - image
        similarity = cosine_similarity(vectors, pictures["delta_x"])
    np.testing.assert_allclose(result["similarity"], similarity.mean(), rtol=1e-4)
    assert "paper 0.661 ± 0.070" in project.table(result)
    assert result["loss"]["test"]["with_penalty"] > result["loss"]["test"]["mean"]


@pytest.mark.parametrize("devices", [2, 4])
def test_devices_change_nothing(devices, finished, gan_run, tmp_path):
    start(tmp_path, small(gan_run, devices=devices))
    assert content(tmp_path) == content(finished[0])


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_a_killed_run_ends_in_the_same_bytes(finished, gan_run, tmp_path, monkeypatch):
    write = Store.write

    def write_then_die(self, number, **arrays):
        write(self, number, **arrays)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", write_then_die)
        for count in (1, 2):
            with pytest.raises(Killed):
                start(tmp_path, small(gan_run))
            assert len(content(tmp_path)) == 1 + count
    with pytest.raises(RunError, match=r"lacks 1 of its 3 shards, the first is 2"):
        project.load_estimate(tmp_path, data.load("squares32", limit=LIMIT))
    start(tmp_path, small(gan_run))
    assert content(tmp_path) == content(finished[0])


def test_a_damaged_shard_is_named_and_made_again(finished, gan_run, tmp_path, caplog):
    shutil.copytree(finished[0], tmp_path / "run")
    damages = (lambda b: b[:100], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b.replace(b"digest", b"dige\\\\"))
    for number, damage in enumerate(damages):
        file = tmp_path / "run" / "store" / f"00000{number}.safetensors"
        file.write_bytes(damage(file.read_bytes()))
    start(tmp_path / "run", small(gan_run))
    assert content(tmp_path / "run") == content(finished[0])
    for number in range(3):
        assert f"00000{number}.safetensors is damaged" in caplog.text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"project.penalty": 0.3}, "penalty"),
        ({"project.steps": (4, 2)}, "steps"),
        ({"project.precision": "bfloat16"}, "precision"),
        ({"project.block": 4}, "shard"),
        ({"data.limit": 5}, "data"),
        ({"project.splits": ("test",)}, "splits"),
        ({}, "generator"),
    ],
    ids=str,
)
def test_a_store_made_otherwise_is_refused(change, field, finished, gan_run, tmp_path):
    if not change:
        gan_run = write_generator(tmp_path, seed=1)
    shutil.copytree(finished[0] / "store", tmp_path / "run" / "store")
    with pytest.raises(RunError, match=rf"made with another .*\b{field} \("):
        start(tmp_path / "run", small(gan_run, **change))


def test_another_data_sets_generator_is_refused(tmp_path):
    config = small(write_generator(tmp_path, "mnist", 10, 1))
    with pytest.raises(RunError, match="makes mnist in 10 classes, with 1 channels: give a gan run of squares32"):
        start(tmp_path / "run", config)


def test_the_estimate_is_what_the_generator_makes_of_the_latents(finished):
    path, _ = finished
    dataset = data.load("squares32", limit=LIMIT)
    estimate = project.load_estimate(path, dataset)
    split = dataset.splits["test"]
    target = np.array([0, 1, 1, 0, 1, 0])
    vector = jax.jit(estimate.delta_x)(estimate.arrays, split.image, split.label, target, split.index)
    pairs = store.find(path / "store").read()
    place = {pair: i for i, pair in enumerate(zip(pairs["index"], pairs["target"], strict=True))}
    chosen = [place[pair] for pair in zip(split.index, target, strict=True)]
    generator, variables = lively(2, 1, width=8)
    image, _ = jax.jit(generator.apply)(variables, pairs["z"][chosen], target)
    np.testing.assert_allclose(vector, image - split.image, atol=1e-5)
    np.testing.assert_allclose(pairs["loss"][chosen], np.mean((image - split.image) ** 2, axis=(1, 2, 3)), rtol=1e-4)


def test_an_estimate_that_lacks_what_is_needed_is_refused(finished, tmp_path):
    with pytest.raises(RunError, match=r"identity\.json is missing: give the directory of a project run"):
        project.load_estimate(tmp_path, data.load("squares32", limit=LIMIT))
    section = squares32.get_config("align").delta_x
    section.store = str(finished[0])
    assert estimates.load(section, data.load("squares32", limit=LIMIT), "train") is not None
    assert estimates.load(section, data.load("squares32", limit=50), "test", LIMIT) is not None
    with pytest.raises(RunError, match=r"no Δx of 4 of the 10 train images that are needed, image 6 the first"):
        estimates.load(section, data.load("squares32", limit=10), "train")
    with pytest.raises(RunError, match="knows no Δx of 6 of the 6 validation images"):
        estimates.load(section, data.load("squares32", limit=LIMIT), "validation")
    changed = data.load("squares32", limit=LIMIT)
    changed.splits["test"].image[2] += 0.25
    with pytest.raises(RunError, match="projections of other images: image 10202"):
        estimates.load(section, changed, "test")
    with pytest.raises(RunError, match="holds projections of squares32: give a run of mnist"):
        project.load_estimate(finished[0], changed._replace(name="mnist"))


def test_one_generator_does_not_train_and_measure(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "copy")
    dataset = data.load("squares32", limit=LIMIT)
    trained, measuring = (project.load_estimate(path, dataset) for path in (finished[0], tmp_path / "copy"))
    estimates.check_apart(trained, measuring, same_allowed=True)
    estimates.check_apart(trained, None, same_allowed=False)
    with pytest.raises(RunError, match="the generator whose Δx trains is the one whose Δx measures"):
        estimates.check_apart(trained, measuring, same_allowed=False)


def test_own_classes_can_be_left_out_and_images_cut(gan_run):
    config = small(gan_run, **{"project.skip_own_class": True, "project.images": 4})
    pairs = project.select(config, data.load("squares32", limit=LIMIT))
    assert len(pairs.row) == 8
    assert (pairs.images.label[pairs.row] != pairs.target).all()


def test_mnist_is_compared_on_its_own_pixels():
    folded = biggan_folded.fold(lively(10, 1, width=8)[1])
    z, label = jnp.ones((2, 128)), jnp.array([3, 5])
    whole, cut = jax.jit(
        lambda: (biggan_folded.generate(folded, z, label), project.generate_fn(folded, 28)(z, label))
    )()
    chex.assert_trees_all_equal(cut, whole[:, 2:30, 2:30])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"project.generator": ""}, "config.project.generator is missing"),
        ({"project.generator": "nowhere"}, "no such directory"),
        ({"project.splits": ("train", "trian")}, "config.project.splits"),
        ({"project.steps": (600,)}, "config.project.steps"),
        ({"project.steps": (600.0, 150)}, "two integers"),
        ({"project.precision": "float16"}, "config.project.precision"),
        ({"project.eps": 0.0}, "config.project.eps"),
    ],
    ids=str,
)
def test_wrong_settings_are_refused(change, named, gan_run):
    with pytest.raises(ValueError, match=named):
        small(gan_run, **change)


def test_the_papers_settings():
    config = mnist.get_config("project")
    assert (config.project.penalty, config.project.learning_rate) == (1.5, (0.2, 0.2))
    assert config.project.steps == (600, 150)
