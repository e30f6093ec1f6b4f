r"""Squares32: squares of 32 x 32 pixels within [-1, 1], the conditional GAN's data set with an exact Δx.

    python -m gradalign_jax.main --config=configs/squares32.py:align --workdir=runs/squares32_align

The paper trains no classifier on it; the settings here are those of Squares, the input mapping that of MNIST.

The full GAN needs a GPU. A narrow one for two CPU cores:

    python -m gradalign_jax.main --config=configs/squares32.py:gan --config.gan.width=32 --config.gan.iterations=2000 \
      --config.gan.sample_every=250 --config.train.log_every=10 --workdir=runs/squares32_gan

It takes 8 minutes on two cores of a Zen 5 server (configs/README.md).
"""

from configs import common


def get_config(argument: str | None = None):
    """Return the config of a task: baseline | align | pgd | evaluate | vrgan | gan | project; `,smoke` shrinks it."""
    task, smoke = common.parse(argument, (*common.DIRECT, "gan", "project"))
    if task == "gan":
        config = common.gan("squares32", iterations=25_000, smoke=smoke)
        config.gan.use_validation = False  # sampled separately; the authors train on the 10,000 only
        return config
    if task == "project":
        return common.project("squares32", penalty=0.03, learning_rate=0.2, batch=12, smoke=smoke)
    model = {"name": "resnet", "binary": True, "channels": 1, "input_mapping": "unit"}
    if task == "vrgan":
        return common.vrgan("squares32", model, {"name": "unet", "width": 64, "downsamplings": 2}, smoke)
    config = common.classifier("squares32", task, dimensions=32 * 32, model=model)
    config.evaluate.linf_epsilons = (0.002, 0.006, 0.02, 0.04, 0.06, 0.1, 0.14, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    config.evaluate.l2_epsilons = common.scaled(config.evaluate.linf_epsilons, 32 * 32)
    if task != "evaluate":
        config.attack.epsilon = 0.2
        config.validate.epsilons = config.evaluate.linf_epsilons
    return common.smoke(config) if smoke else config
