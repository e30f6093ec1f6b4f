"""Squares: a large or a small square in noise, 224 x 224 (paper 3.1; authors' code).

    python -m gradalign_jax.main --config=configs/squares.py:align --workdir=runs/squares_align

Paper, Table 2 (accuracy %, ε50% L∞, L2, ᾱ_Δx, ᾱ_x): baseline 100 .031 16.5 .026 .022; align 100 .435 61.9 .926
.357; pgd 100 .501 61.3 .222 .151. About 17 % of the pixels lie outside [-1, 1]. With attack.clip="range" the attack
clamps them like the authors', which adds an L2 distance of about 32 that is not part of ε. `--config.attack.clip=data`
attacks without it; its L2 numbers are not comparable with the paper's.
"""

from configs import common


def get_config(argument: str | None = None):
    """Return the config of a task: baseline | align | pgd | evaluate | vrgan; `,smoke` shrinks it."""
    task, smoke = common.parse(argument, common.DIRECT)
    model = {"name": "resnet", "binary": True, "channels": 1, "input_mapping": "raw"}
    if task == "vrgan":
        config = common.vrgan("squares", model, {"name": "unet", "width": 64, "downsamplings": 4}, smoke)
        config.evaluate.block = 10
        if smoke:
            config.data.limit, config.train.batch_size = 32, 4
            config.validate.images = config.evaluate.images = config.evaluate.block = 8
        return config
    config = common.classifier("squares", task, dimensions=224 * 224, model=model)
    config.evaluate.linf_epsilons = (0.002, 0.006, 0.02, 0.04, 0.06, 0.1, 0.14, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    config.evaluate.l2_epsilons = common.scaled(config.evaluate.linf_epsilons, 224 * 224)
    config.evaluate.block = 20
    if task != "evaluate":
        config.attack.epsilon = 0.2
        config.validate.epsilons = config.evaluate.linf_epsilons
    if smoke:
        common.smoke(config)
        config.data.limit = 64
        config.evaluate.images = config.evaluate.block = 8
        config.attack.steps = 3
        if task != "evaluate":
            config.train.batch_size = 4
            config.validate.images = 8
    return config
