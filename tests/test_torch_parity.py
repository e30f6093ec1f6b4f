"""With equal weights, our models, attack and training steps do what an independent PyTorch peer does.

In float64: gradients through training-mode batch norm do not agree better than a few percent in float32 (in
either framework), and forty sign steps amplify any rounding.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

torch = pytest.importorskip("torch")

from gradalign_jax import alignment, training  # noqa: E402
from gradalign_jax.attacks import pgd  # noqa: E402
from gradalign_jax.models import mlp, resnet  # noqa: E402
from gradalign_jax.types import Batch, Classifier  # noqa: E402
from launch.bench.torch_peer import authors, lean, models  # noqa: E402

STYLES = {"authors": authors, "lean": lean}
EPSILON, STEP_SIZE, WEIGHT = 0.05, 0.02, 0.3

# Compiling is most of this file's time; without optimizing the machine code it takes half as long.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


class Case(NamedTuple):
    """A network on both sides, and the settings its experiment trains it with."""

    classifier: Classifier
    make_peer: Any
    image_shape: tuple[int, ...]
    classes: int
    attack_loss: str
    ours: optax.GradientTransformation
    peer: tuple[str, dict]


CASES = {
    "mlp": Case(
        mlp.create(2),
        models.MLP,
        (6, 500),
        2,
        "margin",
        training.adam(1e-4, b1=0.0, b2=0.9),
        ("adam", {"lr": 1e-4, "betas": (0.0, 0.9)}),
    ),
    "resnet_imagenet_stem": Case(
        resnet.create(3, channels=1, stem="imagenet", frozen_norm=True, input_mapping="unit"),
        partial(models.ResNet18, 3, "imagenet", True),
        (3, 28, 28, 1),
        3,
        "cross_entropy",
        optax.adam(1e-4, b1=0.5, b2=0.999),
        ("adam", {"lr": 1e-4, "betas": (0.5, 0.999)}),
    ),
    "resnet_cifar_stem": Case(
        resnet.create(3, channels=3, stem="cifar", frozen_norm=False, input_mapping="unit"),
        partial(models.ResNet18, 3, "cifar", False),
        (3, 16, 16, 3),
        3,
        "cross_entropy",
        optax.sgd(1e-2, momentum=0.9),
        ("sgd", {"lr": 1e-2, "momentum": 0.9}),
    ),
}


class Pair(NamedTuple):
    """Both sides with the same weights, and one batch."""

    case: Case
    variables: dict
    make_peer: Any
    image: np.ndarray
    label: np.ndarray


@pytest.fixture(scope="module", autouse=True)
def one_torch_thread():
    """On a busy machine PyTorch's threads spend most of their time waiting for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CASES)
def pair(request):
    case = CASES[request.param]
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        variables = random_variables(case.classifier, rng)
        image = rng.uniform(-0.9, 0.9, case.image_shape)
        label = np.arange(len(image)) % case.classes

        def make_peer():
            return models.load_flax(case.make_peer().double(), variables).train()

        yield Pair(case, variables, make_peer, image, label)


def random_variables(classifier: Classifier, rng: np.random.Generator) -> dict:
    """Weights and statistics none of which is at its initial value, where a scale of 1 would go unnoticed."""

    def draw(path, leaf):
        if path[-1].key == "kernel":
            value = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        elif path[-1].key in ("scale", "var"):
            value = rng.uniform(0.8, 1.2, leaf.shape)
        else:
            value = rng.uniform(-0.2, 0.2, leaf.shape)
        return jnp.asarray(value)

    with jax.enable_x64(False):
        shapes = jax.eval_shape(classifier.init, jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def to_torch(image) -> Any:
    image = np.array(image)
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2) if image.ndim == 4 else image))


def from_torch(image) -> np.ndarray:
    image = image.detach().numpy()
    return image.transpose(0, 2, 3, 1) if image.ndim == 4 else image


def as_logits(output):
    """A peer's output as logits: one score s is (-s/2, s/2)."""
    return torch.stack([-output / 2, output / 2], 1) if output.ndim == 1 else output


def random_start(pair: Pair, keys) -> Any:
    """The start that our attack draws from `keys`, which is what it returns after no step."""
    attack = pgd.make("linf", steps=0)
    return attack(
        lambda x: jnp.zeros((len(x), 2)),
        keys,
        jnp.asarray(pair.image),
        jnp.asarray(pair.label),
        EPSILON,
        STEP_SIZE,
    )


def test_logits_and_input_jacobian_agree_in_training_mode(pair):
    image = to_torch(pair.image).requires_grad_(True)
    expected = as_logits(pair.make_peer()(image))
    expected_jacobian = lean.input_jacobian(expected, image)

    @compiled
    def jacobian_of(variables, x):
        return alignment.input_jacobian(lambda x: pair.case.classifier.apply(variables, x, train=True)[0], x)

    logits, jacobian = jacobian_of(pair.variables, jnp.asarray(pair.image))
    np.testing.assert_allclose(logits, expected.detach(), rtol=1e-8, atol=1e-10)
    for k in range(logits.shape[1]):
        np.testing.assert_allclose(jacobian[:, k], from_torch(expected_jacobian[:, k]), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("method", training.METHODS)
def test_two_training_steps_agree(pair, method):
    """Two steps, so that the optimizer's state and the running statistics count as well."""
    case, batch = pair.case, Batch(pair.image, pair.label, jnp.arange(len(pair.label)))
    keys = jax.random.split(jax.random.key(1), len(pair.label))
    vector = np.random.default_rng(1).normal(size=pair.image.shape)
    attack = pgd.make("linf", steps=3, loss=case.attack_loss)
    step = compiled(training.make_step(case.classifier, case.ours, method, attack=attack))
    inputs = training.StepInputs(WEIGHT, Partial(lambda *_: jnp.asarray(vector)), EPSILON, STEP_SIZE)
    state = training.TrainState(pair.variables, case.ours.init(pair.variables["params"]), jnp.zeros((), int))
    for _ in range(2):
        state, _ = step(state, batch, keys, inputs)
    start = to_torch(random_start(pair, keys))
    for style in STYLES.values():
        peer = two_peer_steps(pair, style, method, to_torch(vector), start)
        assert_same_changes(state.variables, peer, pair.variables)


def two_peer_steps(pair: Pair, style, method: str, vector, start) -> dict:
    peer, (name, settings) = pair.make_peer(), pair.case.peer
    rows = {tuple(row.flatten().tolist()[:3]): i for i, row in enumerate(to_torch(pair.image))}

    def delta_x(image, label, target):  # the authors' loops ask for single images too
        return torch.stack([vector[rows[tuple(row.flatten().tolist()[:3])]] for row in image.detach()])

    attack = style.make_attack(peer, pair.case.attack_loss, EPSILON, STEP_SIZE, steps=3)
    options = {"delta_x": delta_x if method == "align" else None, "weight": WEIGHT, "attack": attack}
    step = style.make_step(peer, style.optimizer(peer, name, **settings), method, **options)
    for _ in range(2):
        step(to_torch(pair.image), torch.from_numpy(pair.label), start)
    return {name: value.detach().numpy() for name, value in peer.state_dict().items()}


def assert_same_changes(ours: dict, peer: dict, before: dict):
    """Compares what the steps changed in parameters and statistics, in units of each one's largest change."""
    for kind in ("params", "batch_stats"):
        after, start = (models.flax_to_torch(variables[kind]) for variables in (ours, before))
        for name, value in after.items():
            change, expected = value - start[name], peer[name] - start[name]
            scale = np.abs(expected).max() or 1.0  # frozen statistics do not change at all
            np.testing.assert_allclose(change / scale, expected / scale, atol=1e-5, err_msg=name)
        assert kind == "batch_stats" or any(np.any(value != start[name]) for name, value in after.items())


def test_forty_attack_steps_agree(pair):
    image = pair.image[:2] if pair.image.ndim == 2 else pair.image[:2, ::2, ::2]  # small: forty steps in float64
    pair = pair._replace(image=image, label=pair.label[:2])
    keys = jax.random.split(jax.random.key(2), len(pair.label))
    attack = pgd.make("linf", steps=40, loss=pair.case.attack_loss)

    @compiled
    def run(image, label):
        def logits_fn(x):
            return pair.case.classifier.apply(pair.variables, x)[0]

        return attack(logits_fn, keys, image, label, EPSILON, STEP_SIZE)

    ours = run(jnp.asarray(pair.image), jnp.asarray(pair.label))
    start, label = to_torch(random_start(pair, keys)), torch.from_numpy(pair.label)
    assert np.abs(ours - pair.image).max() > 0.9 * EPSILON
    for style in STYLES.values():
        peer_attack = style.make_attack(pair.make_peer(), pair.case.attack_loss, EPSILON, STEP_SIZE)
        peer = from_torch(peer_attack(to_torch(pair.image), label, start))
        np.testing.assert_allclose(ours, peer, atol=1e-9)
