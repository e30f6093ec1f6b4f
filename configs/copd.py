"""Chest radiographs of two classes: the paper's COPD experiments on your own films (paper 3.1; authors' code).

    python -m gradalign_jax.main --config=configs/copd.py:vrgan --config.data.folder=FILMS --config.data.table=TABLE.csv

`gradalign_jax/data/radiographs.py` lists the table's columns. Paper, Table 2, on private films (accuracy %, ε50%
L∞, L2, ᾱ_Δx, ᾱ_x): baseline 66.3 .006 .73 .016 .002; align 64.2 .020 2.91 .163 .064; pgd 64.7 .063 4.97 .081 .023.
"""

from ml_collections import ConfigDict

from configs import common


def get_config(argument: str | None = None):
    """Return the config of a task: baseline | align | pgd | evaluate | vrgan; `,smoke` shrinks it."""
    task, smoke = common.parse(argument, common.DIRECT)
    model = {"name": "resnet", "binary": True, "channels": 1, "input_mapping": "raw"}
    if task == "vrgan":
        config = common.vrgan("copd", model, {"name": "unet", "width": 64, "downsamplings": 4}, smoke)
        config.evaluate.block = 10
    else:
        config = common.classifier("copd", task, dimensions=224 * 224, model=model)
        config.evaluate.linf_epsilons = (0.002, 0.006, 0.02, 0.04, 0.06, 0.1, 0.14, 0.2, 0.4, 0.6, 0.8)
        config.evaluate.l2_epsilons = common.scaled(config.evaluate.linf_epsilons, 224 * 224)
        config.evaluate.block = 20
        if task != "evaluate":
            config.align.weight = 10.0
            config.attack.epsilon = 0.006
            config.validate.epsilons = config.evaluate.linf_epsilons
        if smoke:
            common.smoke(config)
            config.attack.steps = 3
    _films(config)
    if smoke:
        config.data.limit = 32
        config.evaluate.images = config.evaluate.block = 8
        if task != "evaluate":
            config.train.batch_size, config.train.steps_per_epoch, config.validate.images = 4, 4, 8
    return config


def _films(config: ConfigDict) -> None:
    config.data.folder = ""  # folder of films
    config.data.table = ""  # CSV file; "": metadata.csv in the folder
