"""Configs that are refused before JAX is imported: one line, fast, with the key and its value."""

import time

import pytest

from configs import cifar10, copd, mnist, mnist35, spheres, squares, squares32
from gradalign_jax.experiment import config_checks

# Config file, task, the key that is changed, a value that cannot be used.
BAD = [
    *((spheres, "pgd", key, -1) for key in ("seed", "devices", "data.limit", "evaluate.images", "evaluate.block")),
    *((spheres, "pgd", key, 10**12) for key in ("seed", "devices", "data.limit", "evaluate.images", "evaluate.block")),
    *((mnist, "pgd", key, 0) for key in ("train.batch_size", "train.epochs", "train.log_every", "attack.steps")),
    *((mnist, "pgd", key, 10**10) for key in ("train.batch_size", "train.epochs", "train.log_every", "attack.steps")),
    *((mnist, "pgd", key, float("nan")) for key in ("attack.epsilon", "attack.step_size", "optimizer.learning_rate")),
    *((mnist, "pgd", key, float("inf")) for key in ("attack.epsilon", "attack.step_size", "train.checkpoint_minutes")),
    *((mnist, "pgd", key, -0.1) for key in ("attack.epsilon", "attack.step_size", "optimizer.b1", "optimizer.b2")),
    *((mnist, "pgd", key, 1.0) for key in ("optimizer.b1", "optimizer.b2", "optimizer.momentum")),
    *((cifar10, "pgd", key, "other") for key in ("method", "task", "data.name", "matmul_precision", "optimizer.name")),
    *((cifar10, "pgd", key, "other") for key in ("precision.attack", "precision.training", "attack.loss")),
    *((cifar10, "pgd", key, "other") for key in ("attack.clip", "evaluate.suite", "evaluate.norm", "delta_x.name")),
    *((squares, "pgd", key, ()) for key in ("validate.epsilons", "evaluate.linf_epsilons", "evaluate.l2_epsilons")),
    *((squares, "pgd", key, (0.2, 0.1)) for key in ("validate.epsilons", "evaluate.linf_epsilons")),
    *((squares, "pgd", "validate.epsilons", grid) for grid in ((0.1, 0.1), (-0.1, 0.1), ("a",), (0.1, float("nan")))),
    *((cifar10, "pgd", f"model.{key}", "other") for key in ("name", "stem", "input_mapping")),
    *((cifar10, "pgd", "model.channels", number) for number in (0, 2, 10**9)),
    *((spheres, "pgd", "model.hidden", sizes) for sizes in ((0,), (10**9,), (1.5,), ("a",))),
    *((spheres, "pgd", "model.input_size", size) for size in (0, -1, 10**12)),
    *((mnist35, "vrgan", f"generator.{key}", number) for key in ("width", "downsamplings") for number in (0, 10**6)),
    *((mnist35, "vrgan", f"vrgan.{key}", -1.0) for key in ("real", "generated", "fool", "small")),
    (mnist35, "vrgan", "generator.name", "resnet"),  # a classifier
    (mnist35, "vrgan", "model.name", "unet"),  # a generator
    (mnist35, "vrgan", "model.name", "mlp"),  # without the other's options
    (copd, "baseline", "model.pretrained", "nowhere.safetensors"),
    *((squares32, "gan", f"gan.{key}", 0) for key in ("width", "latent_dim", "iterations", "d_steps", "sample_every")),
    *((squares32, "gan", f"gan.{key}", 10**10) for key in ("width", "latent_dim", "iterations", "check_images")),
    (squares32, "gan", "gan.sample_every", 999),  # no divisor of the iterations
    (squares32, "gan", "gan.classifier", "nowhere"),
    *((squares32, "project", "project.splits", names) for names in ((), ("train", "train"), ("tests",))),
    *((squares32, "project", "project.steps", steps) for steps in ((1,), (1, -1), (1.0, 1.0), (10**12, 1))),
    *((squares32, "project", f"project.{key}", -1) for key in ("images", "block")),
    *((squares32, "project", "project.generator", name) for name in ("", "nowhere")),
    *((mnist, "evaluate", "evaluate.square_queries", number) for number in (-1, 200_001)),
    *((mnist, "evaluate", "classifier", name) for name in ("", "nowhere")),
    (mnist, "pgd", "train.steps_per_epoch", 10**9),  # times 30 epochs
    (mnist, "pgd", "validate.first_epoch", 30),
]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad[0].__name__}:{bad[1]},{bad[2]}={bad[3]!r}")
def test_a_bad_value_is_refused_by_name(bad, tmp_path):
    module, task, key, value = bad
    config = module.get_config(task)
    if task == "evaluate":
        config.classifier = str(tmp_path)
    if task == "project":
        config.project.generator = str(tmp_path)
    config_checks.check(config)
    config.update_from_flattened_dict({key: value})
    started = time.monotonic()
    with pytest.raises(ValueError, match="config") as refused:
        config_checks.check(config)
    message = str(refused.value)
    assert time.monotonic() - started < 3
    assert "\n" not in message
    named = "model" if value == "mlp" else "train.epochs" if key == "train.steps_per_epoch" else key
    assert f"config.{named}" in message


def test_there_are_enough_of_them():
    assert len(BAD) >= 60


@pytest.mark.parametrize(
    ("section", "changes", "key"),
    [
        ("model", {"model.channels": 3}, "model.channels=3"),
        ("model", {"model.binary": True, "classes": 10}, "model.binary=True"),
        ("generator", {"generator.downsamplings": 3}, "generator.downsamplings=3"),
    ],
)
def test_a_model_that_does_not_fit_the_data_is_refused_by_name(section, changes, key):
    config = mnist35.get_config("vrgan")
    classes = changes.pop("classes", 2)
    config_checks.check_fits(config, section, "mnist35", (28, 28, 1), 2)
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=rf"config\.{key} does not fit mnist35"):
        config_checks.check_fits(config, section, "mnist35", (28, 28, 1), classes)


def test_points_do_not_fit_a_model_of_images():
    for size, shape in ((500, (28, 28, 1)), (499, (500,))):
        config = spheres.get_config("pgd")
        config.model.input_size = size
        with pytest.raises(ValueError, match=rf"config\.model\.input_size={size} does not fit"):
            config_checks.check_fits(config, "model", "spheres", shape, 2)
