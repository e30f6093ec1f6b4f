"""CIFAR-10 (paper 3.1; authors' code).

    python -m gradalign_jax.main --config=configs/cifar10.py:pgd --workdir=runs/cifar10_pgd

Paper, Table 2 (accuracy %, ε50% L∞, L2, ᾱ_Δx, ᾱ_x): baseline 84.0 .008 .23 .008 .008; align 81.1 .012 .44 .025
.020; pgd 82.6 .023 .77 .041 .031. A run has 100 epochs of 351 batches of 128;
the best epoch is selected from the 34th on.
"""

from configs import common


def get_config(argument: str | None = None):
    """Return the config of a task: baseline | align | pgd | evaluate | gan | project; `,smoke` shrinks it."""
    task, smoke = common.parse(argument, (*common.MULTICLASS, "gan", "project"))
    if task == "gan":
        return common.gan("cifar10", smoke=smoke)
    if task == "project":
        return common.project("cifar10", penalty=0.03, learning_rate=0.1, batch=128, smoke=smoke)
    model = {"name": "resnet", "channels": 3, "stem": "cifar", "frozen_norm": False, "input_mapping": "unit"}
    config = common.classifier("cifar10", task, dimensions=32 * 32 * 3, model=model)
    config.attack.loss = "cross_entropy"
    config.evaluate.linf_epsilons = (0.001, 0.003, 0.006, 0.01, 0.02, 0.03, 0.05, 0.08, 0.15, 0.3, 0.6)
    config.evaluate.l2_epsilons = common.scaled(config.evaluate.linf_epsilons, 32 * 32 * 3)
    if task != "evaluate":
        config.optimizer.name = "sgd"
        config.optimizer.learning_rate = 1e-2
        config.train.batch_size = 128
        config.train.epochs = 100
        config.train.steps_per_epoch = 0
        config.train.log_every = 39
        config.align.weight = 0.3
        config.attack.epsilon = 0.01
        config.validate.first_epoch = 33
        config.validate.epsilons = config.evaluate.linf_epsilons
    if smoke:
        common.smoke(config)
        if task != "evaluate":
            config.validate.first_epoch = 0
    return config
