"""No program is compiled again after the first call, and no memory grows with the number of images or classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradalign_jax import alignment, data, models, parallel
from gradalign_jax.evaluation.options import PGD, Attacks
from gradalign_jax.evaluation.programs import build

SIZE = 6


@pytest.fixture
def compiled():
    """The programs that are compiled, or read from the cache, while a test runs."""
    found = []

    def listen(event, *_, **__):
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


def evaluator(images, on):
    """Return an evaluation of random images in blocks of 8, and the weights on the devices."""
    classifier = models.create("mlp", num_classes=3, binary=False, hidden=(5,), input_size=SIZE)
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (images, SIZE)).astype(np.float32)
    split = data.Split(image, rng.integers(0, 3, images).astype(np.int32), np.arange(images, dtype=np.int32))
    attacks = Attacks((0.1,), PGD(steps=3))
    evaluation = build(classifier, split, attacks, on=on, block=8, key=jax.random.key(0), delta_x=None)
    return evaluation, parallel.replicate(classifier.init(jax.random.key(0)), on)


def test_an_evaluation_compiles_each_measurement_once(compiled):
    evaluation, variables = evaluator(30, jax.devices()[:1])

    def measure(epsilon, part):
        evaluation.clean(variables, part)
        evaluation.alignments(variables, part)
        for attack in ("pgd_linf", "pgd_l2"):
            evaluation.attacked(variables, attack, epsilon, epsilon / 4, part)

    measure(0.1, range(3))
    assert len(compiled) >= 4  # the counter counts
    compiled.clear()
    for epsilon, part in ((0.1, None), (0.2, range(8, 30)), (0.0, range(29, 30))):
        measure(epsilon, part)
    assert not compiled


@pytest.mark.parametrize("devices", [1, 2])
def test_an_evaluations_memory_does_not_grow_with_the_images(devices):
    def temporary(images):
        on = jax.devices()[:devices]
        with parallel.rehearsal(on) as caught:
            evaluation, variables = evaluator(images, on)
            evaluation.attacked(variables, "pgd_linf", 0.1, 0.02)
        return caught.traced.lower().compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) == temporary(4096)


def test_alignments_hold_no_jacobian_of_many_classes():
    """Its size would be 64 images x 400 classes x 500 numbers x 4 bytes = 51 MB."""
    weights = jax.ShapeDtypeStruct((500, 400), jnp.float32)
    image, label = jax.ShapeDtypeStruct((64, 500), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.int32)

    def measure(weights, image, label):
        return alignment.measure_with_theory(lambda x: jnp.tanh(x) @ weights, None, image, label, label)

    memory = jax.jit(measure).lower(weights, image, label).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 51e6 / 10
