"""The paper's values of config keys, by data set and task.

Where the paper is silent, the values are the authors' code's. A test compares them with configs/.
"""

import math
from collections.abc import Mapping
from typing import Any

_WIDE = (0.02, 0.04, 0.06, 0.1, 0.14, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
_MNIST = {"grid": (*_WIDE, 1.4), "dimensions": 28 * 28}
_CROSS_ENTROPY = {"attack.loss": "cross_entropy", "align.weight": 0.3}
# By data set: the test's L∞ grid, the number of inputs, and the keys of classifier runs that differ from _CLASSIFIER.
_OWN: Mapping[str, Mapping[str, Any]] = {
    "spheres": {
        **{"grid": (0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02), "dimensions": 500},
        **{"attack.step_size": 0.002, "train.batch_size": 50, "evaluate.cw_learning_rate": 0.002},
        "validate.epsilons": (0.002, 0.004, 0.006, 0.008, 0.01, 0.02),
    },
    "squares": {"grid": (0.002, 0.006, *_WIDE), "dimensions": 224 * 224},
    "squares32": {"grid": (0.002, 0.006, *_WIDE), "dimensions": 32 * 32},
    "mnist35": _MNIST,
    "copd": {"grid": (0.002, 0.006, *_WIDE[:-2]), "dimensions": 224 * 224, "align.weight": 10.0},
    "mnist": {**_MNIST, **_CROSS_ENTROPY, "optimizer.b1": 0.5, "optimizer.b2": 0.999, "train.batch_size": 64},
    "cifar10": {
        **{"grid": (0.001, 0.003, 0.006, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 0.6), "dimensions": 32 * 32 * 3},
        **{**_CROSS_ENTROPY, "optimizer.name": "sgd", "optimizer.learning_rate": 1e-2, "train.batch_size": 128},
        "validate.first_epoch": 33,
    },
}
_RESNET = {
    **{"model.name": "resnet", "model.binary": False, "model.stem": "imagenet", "model.frozen_norm": True},
    **{"model.channels": 1, "model.input_mapping": "unit"},
}
_BINARY = {**_RESNET, "model.binary": True, "model.input_mapping": "raw"}
_MODEL = {
    "spheres": {"model.name": "mlp", "model.binary": True, "model.hidden": (1000, 1000), "model.input_size": 500},
    **dict.fromkeys(("squares", "mnist35", "copd"), _BINARY),
    "squares32": {**_BINARY, "model.input_mapping": "unit"},
    "mnist": _RESNET,
    "cifar10": {**_RESNET, "model.stem": "cifar", "model.frozen_norm": False, "model.channels": 3},
}
_ADAM = {"optimizer.learning_rate": 1e-4, "optimizer.b1": 0.0, "optimizer.b2": 0.9}
_TRAINED = {**_ADAM, "train.batch_size": 12, "validate.every_epochs": 1, "validate.images": 0}
_CLASSIFIER = {
    **{**_TRAINED, "optimizer.name": "adam", "optimizer.momentum": 0.9, "validate.first_epoch": 0},
    **{"align.weight": 0.1, "align.targets": "closest", "attack.step_size": 0.02, "attack.loss": "margin"},
    **{"evaluate.cw_iterations": 10_000, "evaluate.cw_learning_rate": 0.02},
}
_VRGAN = {**_TRAINED, "vrgan.real": 1.0, "vrgan.generated": 0.01, "vrgan.fool": 0.3, "vrgan.small": 0.5}
_UNET = {"generator.name": "unet", "generator.width": 64}
_GENERATOR = {
    "spheres": {"generator.name": "residual_mlp"},
    **{dataset: {**_UNET, "generator.downsamplings": 4} for dataset in ("squares", "copd")},
    **{dataset: {**_UNET, "generator.downsamplings": 2} for dataset in ("mnist35", "squares32")},
}
_GAN = {
    **{"optimizer.learning_rate": 2e-4, "optimizer.b1": 0.0, "optimizer.b2": 0.999, "train.batch_size": 50},
    **{"gan.width": 256, "gan.latent_dim": 128, "gan.d_steps": 4, "gan.feature_matching": 1.0, "gan.hinge": 0.05},
    **{"gan.ema_decay": 0.9999, "gan.ema_start": 1000, "gan.use_validation": True},
}
_PROJECT = {
    **{"project.ema": False, "project.images": 0, "project.skip_own_class": False},
    "project.solver": "paper",
    "project.splits": ("train", "validation", "test"),
}
# λ_Regz, learning rate, and the batch over whose mean Adam's ε is 1e-8.
_PROJECTIONS = {"squares32": (0.03, 0.2, 12), "mnist": (1.5, 0.2, 64), "cifar10": (0.03, 0.1, 128)}


def values(dataset: str, task: str) -> dict[str, Any]:
    """Return the paper's values by dotted config key.

    Args:
      dataset: name of the data set, as in a config.
      task: classifier | evaluate | vrgan | gan | project.

    Returns:
      The values; {} for a data set that the paper does not have.
    """
    if dataset not in _OWN:
        return {}
    if task == "gan":
        return _GAN | ({"gan.use_validation": False} if dataset == "squares32" else {})
    if task == "project":
        if dataset not in _PROJECTIONS:
            return {}
        penalty, rate, batch = _PROJECTIONS[dataset]
        own = {"project.penalty": penalty, "project.learning_rate": (rate, rate), "project.eps": 1e-8 * batch}
        return {**_PROJECT, **own}
    if task == "vrgan":
        batch = {"train.batch_size": 50 if dataset == "spheres" else 12}
        return {**_VRGAN, **_MODEL[dataset], **_GENERATOR.get(dataset, {}), **batch}
    own = dict(_OWN[dataset])
    grid, root = own.pop("grid"), math.sqrt(own.pop("dimensions"))
    found = {**_CLASSIFIER, **_MODEL[dataset], "validate.epsilons": grid, **own, "evaluate.linf_epsilons": grid}
    found["evaluate.l2_epsilons"] = tuple(epsilon * root for epsilon in grid)
    found["evaluate.l2_step_size"] = found["attack.step_size"] * root
    return found
