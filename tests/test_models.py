"""Classifiers: sizes, options, batch norm, pooling, pretrained weights and the folded networks."""

import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from gradalign_jax import models
from gradalign_jax.models import layers, mlp, preact_resnet, pretrained, resnet, resnet_folded, stem, wide_resnet
from gradalign_jax.ops import platform
from gradalign_jax.storage import weights

KEY = jax.random.key(0)
SIZES = [
    ("mlp", {"num_classes": 2}, 1_507_001),
    ("resnet", {"num_classes": 2, "binary": True, "channels": 1}, 11_177_025),
    ("resnet", {"num_classes": 10, "channels": 1}, 11_181_642),
    ("resnet", {"num_classes": 10, "stem": "cifar", "frozen_norm": False}, 11_173_962),
]


@pytest.mark.parametrize(("name", "options", "size"), SIZES)
def test_number_of_parameters(name, options, size):
    variables = jax.eval_shape(models.create(name, **options).init, KEY)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == size


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match="nearest are: resnet"):
        models.create("resnet18", num_classes=10)
    with pytest.raises(ValueError, match="no model called 'lowering'"):
        models.create("lowering")
    with pytest.raises(ValueError, match="stem='vgg' is not valid: use 'imagenet' or 'cifar'"):
        models.create("resnet", num_classes=10, stem="vgg")
    with pytest.raises(ValueError, match="num_classes=2"):
        models.create("mlp", num_classes=3)
    with pytest.raises(ValueError, match="3 channels"):
        model = models.create("resnet", num_classes=10)
        jax.eval_shape(model.apply, jax.eval_shape(model.init, KEY), jnp.ones((1, 28, 28, 1)))


def test_mlp_is_linear_relu_affine():
    model = models.create("mlp", num_classes=2, hidden=(5,), input_size=3)
    variables = model.init(KEY)
    params = jax.tree.map(np.asarray, variables["params"])
    params["BatchNorm_0"] = {"scale": np.arange(5.0), "bias": np.arange(5.0) - 2}
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    hidden = np.maximum(x @ params["Linear_0"]["kernel"] + params["Linear_0"]["bias"], 0)
    hidden = hidden / np.sqrt(1 + 1e-5) * params["BatchNorm_0"]["scale"] + params["BatchNorm_0"]["bias"]
    score = (hidden @ params["Linear_1"]["kernel"] + params["Linear_1"]["bias"])[:, 0]
    for train in (False, True):
        logits, _ = model.apply({**variables, "params": params}, x, train)
        np.testing.assert_allclose(logits, np.stack([-score / 2, score / 2], 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(64, 8), (7, 7, 3, 16)])
def test_default_initialization_spreads_over_its_bound(shape):
    bound = np.prod(shape[:-1]) ** -0.5
    values = np.asarray(layers.torch_uniform(KEY, shape))
    assert 0.95 * bound < np.abs(values).max() <= bound
    assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)


def batch_norm(x, axis_name=None, frozen=False, train=True):
    layer = layers.BatchNorm(frozen, axis_name)
    variables = {
        "params": {"scale": jnp.array([2.0, 3.0]), "bias": jnp.array([1.0, -1.0])},
        "batch_stats": {"mean": jnp.array([0.5, 0.0]), "var": jnp.array([2.0, 1.0])},
    }
    return layer.apply(variables, x, train, mutable=["batch_stats"])


def test_batch_norm_is_torchs():
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm2d(2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([2.0, 3.0]))
        layer.bias.copy_(torch.tensor([1.0, -1.0]))
        layer.running_mean.copy_(torch.tensor([0.5, 0.0]))
        layer.running_var.copy_(torch.tensor([2.0, 1.0]))
    x = np.random.default_rng(0).normal(1, 3, size=(4, 3, 3, 2)).astype("float32")
    theirs = layer(torch.tensor(x).permute(0, 3, 1, 2)).detach().permute(0, 2, 3, 1)
    ours, state = batch_norm(jnp.array(x))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], layer.running_mean, atol=1e-6)
    np.testing.assert_allclose(state["batch_stats"]["var"], layer.running_var, rtol=1e-5)


def test_frozen_batch_norm_keeps_its_statistics():
    x = jnp.arange(16.0).reshape(2, 2, 2, 2)
    training, state = batch_norm(x, frozen=True, train=True)
    np.testing.assert_array_equal(training, batch_norm(x, train=False)[0])
    np.testing.assert_array_equal(state["batch_stats"]["mean"], [0.5, 0.0])


def test_batch_norm_over_a_mapped_axis_is_that_of_the_whole_batch():
    x = jax.random.normal(KEY, (4, 3, 3, 2)) * jnp.arange(1.0, 5.0)[:, None, None, None]

    def loss(x, axis_name=None):
        return jnp.sum(jnp.sin(batch_norm(x, axis_name)[0]))

    def split(x):
        parts = x.reshape(2, 2, 3, 3, 2)
        return jax.vmap(partial(loss, axis_name="batch"), axis_name="batch")(parts).sum()

    np.testing.assert_allclose(split(x), loss(x), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(split)(x), jax.grad(loss)(x), atol=1e-5)
    _, state = jax.vmap(partial(batch_norm, axis_name="batch"), axis_name="batch")(x.reshape(2, 2, 3, 3, 2))
    for name, value in batch_norm(x)[1]["batch_stats"].items():
        np.testing.assert_allclose(state["batch_stats"][name][0], value, rtol=1e-5)


@pytest.mark.parametrize("size", [(14, 14), (7, 6), (1, 2), (5, 3)])
def test_max_pool_and_its_ties_are_torchs(size):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, *size, 3)).astype("float32")
    image = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    theirs = torch.nn.functional.max_pool2d(image, 3, 2, 1)
    ours, pullback = jax.vjp(stem.max_pool, jnp.array(x))
    g = rng.normal(size=ours.shape).astype("float32")
    theirs.backward(torch.tensor(g).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(ours, theirs.detach().permute(0, 2, 3, 1))
    np.testing.assert_allclose(pullback(jnp.array(g))[0], image.grad.permute(0, 2, 3, 1), atol=1e-6)


@pytest.mark.parametrize("mapping", ["unit", "raw"])
def test_normalization(mapping):
    scale, shift = stem.normalization(mapping)
    black = 0.0 if mapping == "unit" else -1.0
    normalized = np.array([-1.0, 1.0])[:, None] * scale[None] + shift[None]
    np.testing.assert_allclose(normalized[:, 0], [(black - 0.485) / 0.229, (1.0 - 0.485) / 0.229], rtol=1e-6)


def test_gray_images_are_three_equal_channels():
    image = jnp.array(np.random.default_rng(0).uniform(-1, 1, (2, 9, 8, 1)), jnp.float32)
    stem = resnet.Stem(4, 7, 2, 3, "raw")
    variables = stem.init(jax.random.key(0), image)
    assert variables["params"]["kernel"].shape == (7, 7, 3, 4)

    def loss(variables, image):
        return jnp.sum(jnp.sin(stem.apply(variables, image)))

    gray = jax.value_and_grad(loss, (0, 1))(variables, image)
    colored = jax.value_and_grad(lambda v, x: loss(v, jnp.repeat(x, 3, axis=-1)), (0, 1))(variables, image)
    for a, b in zip(jax.tree.leaves(gray), jax.tree.leaves(colored), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def torchvision_tensors(variables):
    """Return random weights with torchvision's names and layouts, and a head of the model's size."""
    rng = np.random.default_rng(0)
    tensors = {}
    for path, value in jax.tree_util.tree_leaves_with_path(variables):
        *parts, leaf = [key.key for key in path][1:]
        name = ".".join(part.replace("_", ".") for part in parts)
        leaf = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}.get(leaf, leaf)
        shape = value.shape[:1:-1] + value.shape[:2] if value.ndim == 4 else value.shape[::-1]
        tensors[f"{name}.{leaf}"] = np.ascontiguousarray(rng.uniform(0.1, 0.2, shape), "float32")
    return tensors | {"bn1.num_batches_tracked": np.array(3)}


@pytest.fixture(scope="module")
def small():
    model = models.create("resnet", num_classes=10, channels=1)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), jax.eval_shape(model.init, KEY))
    return variables, torchvision_tensors(variables)


def test_pretrained_tensors_land_where_they_belong(small, tmp_path):
    variables, tensors = small
    save_file(tensors, tmp_path / "weights.safetensors")
    assert len(tensors) == 62 + 40 + 1  # weights, statistics, the ignored count
    loaded = pretrained.load(tmp_path / "weights.safetensors", variables)
    assert jax.tree.map(jnp.shape, loaded) == jax.tree.map(jnp.shape, variables)
    kernel = loaded["params"]["layer2_0"]["downsample_0"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], tensors["layer2.0.downsample.0.weight"][:, :, 0, 0].T)
    kernel = loaded["params"]["layer1_1"]["conv2"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 2, 5, 7], tensors["layer1.1.conv2.weight"][7, 5, 0, 2])
    np.testing.assert_array_equal(loaded["batch_stats"]["bn1"]["var"], tensors["bn1.running_var"])
    np.testing.assert_array_equal(loaded["params"]["fc"]["kernel"], tensors["fc.weight"].T)


def test_a_head_of_another_size_is_left_alone(small, tmp_path):
    variables, tensors = small
    save_file(tensors | {"fc.weight": np.ones((1000, 512), "float32")}, tmp_path / "w.safetensors")
    loaded = pretrained.load(tmp_path / "w.safetensors", variables)
    assert not loaded["params"]["fc"]["kernel"].any()
    assert not loaded["params"]["fc"]["bias"].any()


def test_training_can_start_from_a_runs_weights(small, tmp_path):
    """The head of two outputs does not fit; every other tensor is loaded unchanged."""
    variables = models.create("resnet", num_classes=2, channels=1).init(KEY)
    weights.write(tmp_path / "classifier.safetensors", variables)
    loaded = pretrained.load(tmp_path / "classifier.safetensors", small[0])
    assert not loaded["params"].pop("fc")["kernel"].any()
    variables["params"].pop("fc")
    chex.assert_trees_all_equal(loaded, variables)


def test_damaged_files_are_named(small, tmp_path):
    variables, tensors = small
    path = tmp_path / "w.safetensors"
    with pytest.raises(ValueError, match=r"w\.safetensors: no such file"):
        pretrained.load(path, variables)
    save_file({name: value for name, value in tensors.items() if name != "layer3.1.bn2.bias"}, path)
    with pytest.raises(ValueError, match=r"w\.safetensors: no tensor layer3\.1\.bn2\.bias"):
        pretrained.load(path, variables)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"w\.safetensors: not a complete safetensors file"):
        pretrained.load(path, variables)
    save_file(tensors | {"conv1.weight": np.ones((64, 3, 3, 3), "float32")}, path)
    with pytest.raises(ValueError, match=r"conv1\.weight has shape \(3, 3, 3, 64\).*stem") as caught:
        pretrained.load(path, variables)
    assert "\n" not in str(caught.value)


def test_the_hub_is_an_extra(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'pip install "gradalign_jax\[hub\]"'):
        pretrained.load("hf:owner/name", small[0])


FOLDED = {
    "mlp": (mlp.create(hidden=(32, 24)), (4, 500)),
    "cifar": (resnet.create(10, stem="cifar", frozen_norm=False), (2, 16, 16, 3)),
    "gray": (resnet.create(10, channels=1), (2, 28, 28, 1)),
    "binary": (resnet.create(2, binary=True, channels=1, input_mapping="raw"), (2, 16, 16, 1)),
    "preact": (preact_resnet.create(10, (1, 1), 16, mean=(0.5, 0.4, 0.4), std=(0.2, 0.2, 0.3)), (2, 16, 16, 3)),
    "raw shortcut": (preact_resnet.create(10, (1, 1), 16, final_norm=False), (2, 16, 16, 3)),
    "deepmind": (wide_resnet.create(10, depth=10, width=1, style="deepmind"), (2, 16, 16, 3)),
}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
@pytest.mark.parametrize("kind", FOLDED)
def test_the_folded_network_is_the_network(kind, name):
    """Folded, it has the same logits and, in bfloat16, nearly the same gradients."""
    model, shape = FOLDED[kind]
    rng = np.random.default_rng(0)

    def varied(path, leaf):
        low, high = {"mean": (-0.2, 0.2), "var": (0.5, 1.5), "scale": (0.5, 1.5)}.get(path[-1].key, (None, None))
        return leaf * 1.5 if low is None else jnp.asarray(rng.uniform(low, high, leaf.shape), jnp.float32)

    variables = jax.tree_util.tree_map_with_path(varied, model.init(jax.random.key(0)))
    image = jnp.asarray(rng.uniform(-1, 1, shape), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=(len(image), 2 if kind in ("mlp", "binary") else 10)), jnp.float32)

    @jax.jit
    def plain(x):
        logits, pull_back = jax.vjp(lambda x: model.apply(variables, x)[0], x)
        return logits, pull_back(cotangent)[0]

    expected, gradient = plain(image)
    with platform.target(name):
        logits = jax.jit(lambda x: model.searched(variables, jnp.dtype("float32"))(x))(image)
        ours = jax.jit(lambda x: jax.vjp(model.searched(variables, jnp.dtype("bfloat16")), x)[1](cotangent)[0])(image)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    assert ours.dtype == jnp.float32
    assert np.sum(ours * gradient) / np.linalg.norm(ours) / np.linalg.norm(gradient) > 0.9


def test_a_bfloat16_stem_keeps_small_perturbations():
    """The stem reads the image in two parts, so that a step of 0.001 from 0.898 is not lost."""
    image = jnp.full((1, 2, 2, 1), 0.8984375)
    channels = [jax.jit(partial(resnet_folded.channels_of, dtype=jnp.bfloat16))(x) for x in (image, image + 1e-3)]
    assert channels[0].dtype == jnp.bfloat16
    whole = [np.asarray(c, np.float32)[..., :2].sum(-1) for c in channels]
    assert (image.astype(jnp.bfloat16) == (image + 1e-3).astype(jnp.bfloat16)).all()
    np.testing.assert_allclose(whole[1] - whole[0], 1e-3, rtol=0.02)
