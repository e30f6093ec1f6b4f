"""Every key of a run with its default. Plain data: nothing here imports the package.

In `--config=configs/mnist.py:pgd,smoke`, a task and optional flags follow the colon. `parse` splits them, and a data
set's file calls the function of that task here. Any key can be changed from the command line
(`--config.attack.epsilon=0.2`). Images live in [-1, 1]; every ε and step size is in those units, so numbers are twice
those for images in [0, 1]. Where the paper gives no value, it is that of the code behind the paper's tables.
"""

import difflib
import math

from ml_collections import ConfigDict

METHODS = ("baseline", "align", "pgd")  # training methods of a classifier
MULTICLASS = (*METHODS, "evaluate")
DIRECT = (*MULTICLASS, "vrgan")  # for data sets of two classes, whose Δx a VR-GAN can estimate

# Precision of the products in searches and in training.
PRECISION = {
    "training": "tf32",  # gradients of parameters; a GAN also accepts bfloat16
    "attack": "bfloat16",  # the attack in PGD training
    "evaluation": "auto",  # PGD's steps in validation and test
    "square": "tf32",  # Square Attack's queries: bfloat16 hides its small gains (launch/compiled.md)
    "projection": "tf32",  # the search for latents; rounds like the authors' float16 factors
}
# Which of them each task has.
_PRODUCTS = {
    "classifier": ("training", "attack", "evaluation", "square"),
    "evaluate": ("evaluation", "square"),
    "vrgan": ("training",),
    "gan": ("training",),
    "project": ("projection",),
}

# Options of each model's `create`, with their defaults.
MODELS = {
    "mlp": {"binary": True, "hidden": (1000, 1000), "input_size": 500},
    "resnet": {
        "binary": False,  # one output s, presented as logits (-s/2, s/2)
        "channels": 3,
        "stem": "imagenet",  # imagenet: 7x7 stride 2 and max pool; cifar: 3x3
        "frozen_norm": True,  # batch norm uses its stored statistics in training, too
        "input_mapping": "unit",  # ImageNet's mean and deviation for images in [0, 1]; raw: in [-1, 1]
    },
    "preact_resnet": {
        "blocks": (2, 2, 2, 2),  # of each stage
        "width": 64,  # channels of the first stage
        "final_norm": True,  # as Rice et al. 2020; False: as Wong et al. 2020
        "mean": (0.0, 0.0, 0.0),  # and deviation of images in [0, 1], by which the model normalizes its input
        "std": (1.0, 1.0, 1.0),
        "frozen_norm": False,
    },
    "wide_resnet": {
        "depth": 28,
        "width": 10,
        "style": "trades",  # deepmind: swish, TensorFlow's padding
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "frozen_norm": False,
    },
}


def parse(argument: str | None, tasks: tuple[str, ...]) -> tuple[str, bool]:
    """Split "pgd,smoke" into the task and whether it is a smoke run.

    Raises:
      ValueError: an unknown task or flag, with the closest valid one, or more than one task.
    """
    words = [word.strip() for word in (argument or tasks[0]).split(",")]
    for word in words:
        if word not in (*tasks, "smoke"):
            near = difflib.get_close_matches(word, (*tasks, "smoke"), 1, 0)
            raise ValueError(
                f"unknown task or flag {word!r} in --config=...:{argument}; did you mean {near[0]!r}? "
                f"Tasks of this data set: {', '.join(tasks)}; flag: smoke"
            )
    chosen = [word for word in words if word != "smoke"]
    if len(chosen) > 1:
        raise ValueError(f"give one task, not {len(chosen)}: {', '.join(chosen)}")
    return (chosen[0] if chosen else tasks[0]), "smoke" in words


def base(dataset: str, task: str) -> ConfigDict:
    """Return the keys of every task."""
    config = ConfigDict()
    config.task = task  # a file of gradalign_jax/tasks
    config.seed = 0  # the source of all randomness
    config.devices = 0  # number of devices; 0: as many of those present as divide the batch
    # policy: follow config.precision; highest: override it with float32 in every product
    config.matmul_precision = "policy"
    # float32; tf32: factors rounded for a GPU's tensor cores (float32 on a CPU); bfloat16; auto: bfloat16 on a GPU or
    # TPU, float32 on a CPU. Reported numbers (deciding logits, distances, alignments, L_proj) are always float32.
    config.precision = ConfigDict({part: PRECISION[part] for part in _PRODUCTS[task]})

    config.data = ConfigDict()
    config.data.name = dataset
    config.data.dir = ""  # directory of tensorflow_datasets; "": $TFDS_DATA_DIR, else ~/tensorflow_datasets
    # directory of decoded arrays; "": $XDG_CACHE_HOME/gradalign_jax, else ~/.cache/gradalign_jax
    config.data.cache = ""
    config.data.limit = 0  # number of images per split (0 = all)
    return config


def _model_and_training(config: ConfigDict, model: dict) -> None:
    # name: a file of gradalign_jax/models; the rest: options of its `create`
    config.model = ConfigDict(MODELS[model["name"]] | model)
    config.model.pretrained = ""  # safetensors file of ImageNet weights or of a run, or hf:owner/name; "": from scratch

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b1 = 0.0  # adam (the authors': 0 and 0.9 for the binary data sets, 0.5 and 0.999 for MNIST)
    config.optimizer.b2 = 0.9

    config.train = ConfigDict()
    config.train.batch_size = 12  # over all devices
    config.train.epochs = 30
    config.train.steps_per_epoch = 200  # 0: the whole batches of the data set
    config.train.log_every = 50  # steps, rounded down to a divisor of the epoch
    config.train.checkpoint_minutes = 5.0  # time between checkpoints within an epoch


def measured(config: ConfigDict, dimensions: int) -> ConfigDict:
    """Add the keys of the tasks that measure a classifier, and return the config."""
    config.attack = ConfigDict()  # PGD L∞ in PGD training, validation and test
    config.attack.step_size = 0.02  # η
    config.attack.steps = 40  # k
    config.attack.loss = "margin"  # margin | cross_entropy
    config.attack.clip = "range"  # range: clamp to [-1, 1] (the paper); data: to the data's range if it is wider

    config.evaluate = ConfigDict()  # the best epoch on the test split
    config.evaluate.images = 0  # number of test images (0 = all)
    config.evaluate.block = 0  # images per device and program; 0: 100 on a CPU, else as many as memory allows
    config.evaluate.linf_epsilons = ()  # of PGD L∞ and Square Attack
    config.evaluate.l2_epsilons = ()
    config.evaluate.l2_step_size = 0.02 * math.sqrt(dimensions)  # η∞ √n
    config.evaluate.square_queries = 0  # of Square Attack; 0: no Square Attack (paper A.1: 5000)
    config.evaluate.square_images = 0  # number of test images for Square Attack (0 = all)
    config.evaluate.cw_images = 0  # number of test images for Carlini-Wagner (Figure 7; 0 = none)
    config.evaluate.cw_iterations = 10_000  # maximum of each of its 9 descents
    config.evaluate.cw_learning_rate = 0.02  # of its Adam; must be small beside the distances
    config.evaluate.suite = "paper"  # autoattack | malt: also a standard sequence of stronger attacks
    config.evaluate.norm = "linf"  # of the suite's attacks: linf | l2
    config.evaluate.suite_steps = 100  # gradient steps of each of them
    config.evaluate.suite_queries = 5000  # of its Square Attack
    config.evaluate.delta_x = ""  # as delta_x.name, for ᾱ_Δx
    _estimator(config.evaluate)
    config.evaluate.generator = ""  # as delta_x.generator, for ᾱ_Δx; in the paper not the one that trains
    config.evaluate.store = ""  # as delta_x.store, likewise
    config.evaluate.same_generator = False  # allow the generator or store that trained
    config.evaluate.gradients = ()  # also measured, against every Δx: files of gradalign_jax/gradients
    config.evaluate.estimators = ()  # further Δx for them: files of gradalign_jax/deltax
    config.evaluate.measures = ()  # of them: some of etmann, removal, tangent, noise; the last two need evaluate.store
    return config


def _estimator(section: ConfigDict) -> None:
    """Add the options of an estimator of Δx that is chosen by name."""
    section.neighbors = 0  # of nearest and patch; 0: the estimator's default
    section.penalty = 0.0  # of encoder, λ of Eq. 15; 0: the estimator's default (the project task of MNIST has 1.5)
    section.teacher = ""  # of teacher: directory of a finished classifier run
    section.teacher_epsilon = 0.0  # of teacher: largest L2 norm of Δx, about the distance between classes


def evaluate(dataset: str, dimensions: int) -> ConfigDict:
    """Return the keys of an evaluation of a finished classifier, which determines model, method and seed."""
    config = measured(base(dataset, "evaluate"), dimensions)
    del config.seed
    config.classifier = ""  # directory of the finished run, or of imported weights (gradalign_jax/convert.py)
    config.evaluate.square_queries = 5000
    return config


def classifier(dataset: str, task: str, dimensions: int, model: dict) -> ConfigDict:
    """Return the keys of a classifier run or an evaluation, with the values that most data sets share."""
    if task == "evaluate":
        return evaluate(dataset, dimensions)
    config = measured(base(dataset, "classifier"), dimensions)
    config.method = task  # baseline | align | pgd

    _model_and_training(config, model)
    config.optimizer.name = "adam"  # adam | sgd
    config.optimizer.momentum = 0.9  # of sgd

    config.align = ConfigDict()  # of method align
    config.align.weight = 0.1  # λ_α (Eq. 9)
    config.align.targets = "closest"  # closest: Δx to c̃ (Eq. 9); all: the sum over all other classes

    config.delta_x = ConfigDict()  # Δx of method align
    config.delta_x.name = ""  # a file of gradalign_jax/deltax; "": from the directory given below, else the exact Δx
    _estimator(config.delta_x)
    config.delta_x.generator = ""  # directory of a finished vrgan run, or for name=encoder of a gan run
    config.delta_x.store = ""  # directory of a finished project run

    config.attack.epsilon = 0.3  # of PGD training (paper A.1)

    config.validate = ConfigDict()
    config.validate.every_epochs = 1
    config.validate.images = 0  # number of validation images (0 = all)
    config.validate.first_epoch = 0  # first epoch, counted from 0, that may be selected
    config.validate.epsilons = ()  # L∞ grid of the ε50% that selects the epoch
    return config


def gan(dataset: str, iterations: int = 125_000, smoke: bool = False) -> ConfigDict:
    """Return the keys of a conditional GAN run, with the authors' values."""
    config = base(dataset, "gan")
    config.optimizer = ConfigDict()  # Adam, for both networks
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.999

    config.train = ConfigDict()
    config.train.batch_size = 50  # over all devices; of each step of either network
    config.train.log_every = 50  # iterations, rounded down to a divisor of sample_every and of the epoch
    config.train.checkpoint_minutes = 5.0  # time between checkpoints, besides the one with each picture

    config.gan = ConfigDict()
    config.gan.width = 256  # channels of both networks
    config.gan.latent_dim = 128
    config.gan.iterations = iterations  # steps of the generator
    config.gan.d_steps = 4  # steps of the discriminator per step of the generator
    config.gan.feature_matching = 1.0  # weight in the generator's loss
    config.gan.hinge = 0.05  # weight in the generator's loss
    config.gan.ema_decay = 0.9999  # of the averaged generator, which is stored beside the raw one
    config.gan.ema_start = 1000  # until this iteration the average is a copy
    config.gan.use_validation = True  # also train on the classifiers' validation split (as the authors)
    config.gan.sample_every = 1000  # iterations between pictures; a divisor of `iterations`
    config.gan.sample_columns = 10  # samples per class in a picture
    config.gan.check_images = 100  # samples per class in the final check
    config.gan.classifier = ""  # directory of a finished classifier run for the final check
    if smoke:
        config.data.limit = 1000
        config.train.log_every = 5
        config.gan.width = 16
        config.gan.iterations = 40
        config.gan.sample_every = 20
        config.gan.check_images = 50
    return config


def project(dataset: str, penalty: float, learning_rate: float, batch: int, smoke: bool = False) -> ConfigDict:
    """Return the keys of a projection run.

    Args:
      dataset: name of the data set.
      penalty: λ_Regz (Eq. 15).
      learning_rate: Adam's, in both phases.
      batch: the authors' batch size, over which they average the loss.
      smoke: shrink the run.
    """
    config = base(dataset, "project")
    config.project = ConfigDict()
    config.project.generator = ""  # directory of a finished gan run
    config.project.ema = False  # use the averaged generator; the authors use the raw one
    config.project.splits = ("train", "validation", "test")
    config.project.images = 0  # number of images per split (0 = all)
    config.project.classes = "all"  # closest: only c̃ of `classifier`, once more for each further classifier
    config.project.classifier = ""  # directory of a finished classifier run; it also judges the projections
    config.project.shared = ""  # directory of a store that several project runs fill together; "": a store of its own
    config.project.skip_own_class = False  # skip each image's own class, which Δx never needs
    # fast: a third of all steps, in one phase with the penalty; Adam's rate falls from 2.5 times the first to 0
    config.project.solver = "paper"
    config.project.steps = (600, 150)  # of Adam, first without and then with the penalty (paper A.3)
    config.project.learning_rate = (learning_rate, learning_rate)
    config.project.penalty = penalty  # λ_Regz (Eq. 15)
    config.project.eps = 1e-8 * batch  # Adam's ε for the loss of one pair: 1e-8 for the mean over the authors' batch
    # pairs per device and program; 0: 16 on a CPU, else as many as memory allows
    config.project.block = 0
    if smoke:
        config.data.limit = 512
        config.project.splits = ("train", "test")
        config.project.steps = (8, 2)
        config.project.block = 64
    return config


def vrgan(dataset: str, model: dict, generator: dict, smoke: bool) -> ConfigDict:
    """Return the keys of a VR-GAN run (section 2.3.1): a generator of Δ̂x, and the data set's classifier as critic."""
    config = base(dataset, "vrgan")
    _model_and_training(config, model)

    # name: a file of gradalign_jax/models; the rest: options of its `create`
    config.generator = ConfigDict(generator)

    config.vrgan = ConfigDict()  # weights of the losses
    config.vrgan.real = 1.0  # L_Dx, of the critic
    config.vrgan.generated = 0.01  # L_Dx', of the critic
    config.vrgan.fool = 0.3  # L_G
    config.vrgan.small = 0.5  # L_RegG

    config.validate = ConfigDict()  # logged only: the smallest mean training loss selects the epoch
    config.validate.every_epochs = 1
    config.validate.images = 0  # number of validation images (0 = all)

    config.evaluate = ConfigDict()
    config.evaluate.images = 0  # number of test images (0 = all)
    config.evaluate.block = 0  # images per device and program; 0: 100 on a CPU, else as many as memory allows
    if smoke:
        config.data.limit = 128
        config.train.epochs = 2
        config.train.steps_per_epoch = 8
        config.train.log_every = 2
        config.validate.images = config.evaluate.images = 32
        config.evaluate.block = 32
        if "width" in config.generator:
            config.generator.width = 8
    return config


def scaled(epsilons: tuple[float, ...], dimensions: int) -> tuple[float, ...]:
    """Return the L2 grid that the paper pairs with an L∞ grid: ε √n."""
    return tuple(epsilon * math.sqrt(dimensions) for epsilon in epsilons)


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrink a run to a minute or two on a laptop's CPU: every stage, on real data. Returns the config."""
    config.data.limit = 512
    config.evaluate.images = 32
    config.evaluate.block = 32
    config.attack.steps = min(config.attack.steps, 5)
    for grid in ("linf_epsilons", "l2_epsilons"):
        config.evaluate[grid] = config.evaluate[grid][1::3]
    if config.task == "evaluate":
        config.evaluate.square_queries, config.evaluate.cw_iterations = 50, 200
        return config
    config.train.epochs = 2
    config.train.steps_per_epoch = 4
    config.train.batch_size = min(config.train.batch_size, 16)
    config.train.log_every = 2
    config.validate.images = 32
    config.validate.epsilons = config.validate.epsilons[1::3]
    return config
