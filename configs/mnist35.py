"""MNIST-3/5: the digits 3 and 5 (paper 3.1; authors' code).

    python -m gradalign_jax.main --config=configs/mnist35.py:pgd --workdir=runs/mnist35_pgd

Paper, Table 2 (accuracy %, ε50% L∞, L2, ᾱ_Δx, ᾱ_x): baseline 99.3 .198 2.36 .171 .013; align 99.5 .357 3.88 .678
.196; pgd 99.5 .547 4.20 .345 .040. A run has 30 epochs of 200 batches of 12.
"""

from configs import common


def get_config(argument: str | None = None):
    """Return the config of a task: baseline | align | pgd | evaluate | vrgan; `,smoke` shrinks it."""
    task, smoke = common.parse(argument, common.DIRECT)
    model = {"name": "resnet", "binary": True, "channels": 1, "input_mapping": "raw"}
    if task == "vrgan":
        return common.vrgan("mnist35", model, {"name": "unet", "width": 64, "downsamplings": 2}, smoke)
    config = common.classifier("mnist35", task, dimensions=28 * 28, model=model)
    config.evaluate.linf_epsilons = (0.02, 0.04, 0.06, 0.1, 0.14, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
    config.evaluate.l2_epsilons = common.scaled(config.evaluate.linf_epsilons, 28 * 28)
    if task != "evaluate":
        config.validate.epsilons = config.evaluate.linf_epsilons
    return common.smoke(config) if smoke else config
