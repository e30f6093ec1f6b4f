r"""MNIST, ten digits (paper 3.1; authors' code).

    python -m gradalign_jax.main --config=configs/mnist.py:pgd --workdir=runs/mnist_pgd

Paper, Table 2 (accuracy %, ε50% L∞, L2, ᾱ_Δx, ᾱ_x): baseline 99.2 .171 2.19 .075 .038; align 99.2 .325 3.55 .592
.320; pgd 99.4 .554 4.32 .181 .043. A run has 30 epochs of 843 batches of 64.

The full GAN needs a GPU. A narrow one for two CPU cores takes 4 minutes on a Zen 5 server; so short a run needs a
larger weight of the hinge than the authors' (configs/README.md):

    python -m gradalign_jax.main --config=configs/mnist.py:gan --config.gan.width=32 --config.gan.iterations=1000 \
      --config.gan.sample_every=250 --config.train.log_every=10 --config.gan.hinge=1 --workdir=runs/mnist_gan
"""

from configs import common


def get_config(argument: str | None = None):
    """Return the config of a task: baseline | align | pgd | evaluate | gan | project; `,smoke` shrinks it."""
    task, smoke = common.parse(argument, (*common.MULTICLASS, "gan", "project"))
    if task == "gan":
        return common.gan("mnist", smoke=smoke)
    if task == "project":
        return common.project("mnist", penalty=1.5, learning_rate=0.2, batch=64, smoke=smoke)
    model = {"name": "resnet", "channels": 1, "input_mapping": "unit"}
    config = common.classifier("mnist", task, dimensions=28 * 28, model=model)
    config.attack.loss = "cross_entropy"
    config.evaluate.linf_epsilons = (0.02, 0.04, 0.06, 0.1, 0.14, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
    config.evaluate.l2_epsilons = common.scaled(config.evaluate.linf_epsilons, 28 * 28)
    if task != "evaluate":
        config.optimizer.b1, config.optimizer.b2 = 0.5, 0.999
        config.train.batch_size = 64
        config.train.steps_per_epoch = 0
        config.train.log_every = 281  # an epoch has 843 = 3 * 281 steps
        config.align.weight = 0.3
        config.validate.epsilons = config.evaluate.linf_epsilons
    return common.smoke(config) if smoke else config
