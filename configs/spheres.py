"""Spheres: two concentric spheres in 500 dimensions (paper 2.1; Gilmer et al. 2018), sampled on the device.

    python -m gradalign_jax.main --config=configs/spheres.py:pgd --workdir=runs/spheres_pgd

Paper, Table 2 (accuracy %, ε50% L∞, L2, ᾱ_Δx): baseline 99.4 .0058 .099 .659; align 100 .0076 .133 .886;
pgd 100 .0073 .126 .851. An epoch has 10,000 batches of 50, a run 800,000 steps.
"""

from configs import common


def get_config(argument: str | None = None):
    """Return the config of a task: baseline | align | pgd | evaluate | vrgan; `,smoke` shrinks it."""
    task, smoke = common.parse(argument, common.DIRECT)
    model = {"name": "mlp"}
    if task == "vrgan":
        config = common.vrgan("spheres", model, {"name": "residual_mlp"}, smoke)
        config.train.batch_size, config.train.epochs, config.train.steps_per_epoch = 50, 80, 10_000
        config.train.log_every = 500
        if smoke:
            config.train.epochs, config.train.steps_per_epoch, config.train.log_every = 4, 500, 50
        return config
    config = common.classifier("spheres", task, dimensions=500, model=model)
    config.attack.step_size = 0.002
    config.evaluate.linf_epsilons = (0.0005, 0.001, 0.002, 0.004, 0.006, 0.008, 0.01, 0.02)
    config.evaluate.l2_epsilons = common.scaled(config.evaluate.linf_epsilons, 500)
    config.evaluate.l2_step_size = 0.002 * 500**0.5
    config.evaluate.cw_learning_rate = 0.002  # the authors': 0.02 times their multiplier 0.1; 0.02 overshoots
    config.precision.square = "float32"  # TF32 shifts ε50% by a fifth of the paper's deviation (launch/compiled.md)
    if task != "evaluate":
        config.train.batch_size = 50
        config.train.epochs = 80
        config.train.steps_per_epoch = 10_000
        config.train.log_every = 500
        config.attack.epsilon = 0.005
        config.validate.epsilons = (0.002, 0.004, 0.006, 0.008, 0.01, 0.02)
    if smoke and task != "evaluate":  # cheap enough to keep its grids, its attack and its images
        config.train.epochs = 4
        config.train.steps_per_epoch = {"baseline": 1000, "align": 1000, "pgd": 250}[task]
        config.train.log_every = 50
    if smoke and task == "evaluate":
        config.evaluate.images, config.evaluate.square_queries, config.evaluate.cw_iterations = 200, 200, 200
    return config
