"""Every key of a run with its default. Plain data: nothing here imports the package.

What follows the colon of `--config=configs/mnist.py:pgd,smoke` is a task, then optional flags; `parse` splits it, and
a data set's file calls the function of that task here. Any key can be changed from the command line
(`--config.attack.epsilon=0.2`). Images live in [-1, 1]; every ε and step size is in those units, twice the usual
ones of [0, 1]. Where the paper is silent, values are those of the code behind its tables.
"""

import difflib
import math

from ml_collections import ConfigDict

METHODS = ("baseline", "align", "pgd")  # of training a classifier
MULTICLASS = (*METHODS, "evaluate")
DIRECT = (*MULTICLASS, "vrgan")  # of a data set whose Δx a VR-GAN can draw

# The precision of the products that search or train, and the tasks that use them.
PRECISION = {
    "training": "tf32",  # whatever trains parameters; a GAN also accepts bfloat16
    "attack": "bfloat16",  # the attack of pgd training
    "evaluation": "auto",  # PGD's steps in validation and test
    "square": "tf32",  # Square Attack's queries: bfloat16 hides the small gains that it lives on (launch/README.md)
    "projection": "tf32",  # the search for latents; rounds as the authors' float16 factors did
}
_PRODUCTS = {
    "classifier": ("training", "attack", "evaluation", "square"),
    "evaluate": ("evaluation", "square"),
    "vrgan": ("training",),
    "gan": ("training",),
    "project": ("projection",),
}

# Every option of a model's `create`, at its default.
MODELS = {
    "mlp": {"binary": True, "hidden": (1000, 1000), "input_size": 500},
    "resnet": {
        "binary": False,  # one output s, presented as logits (-s/2, s/2)
        "channels": 3,
        "stem": "imagenet",  # imagenet: 7x7 stride 2 and max pool; cifar: 3x3
        "frozen_norm": True,  # batch norm keeps to its stored statistics
        "input_mapping": "unit",  # ImageNet's mean and deviation on images in [0, 1]; raw: in [-1, 1]
    },
}


def parse(argument: str | None, tasks: tuple[str, ...]) -> tuple[str, bool]:
    """Splits "pgd,smoke" into its task and whether it is a smoke run; names the nearest word for a wrong one."""
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
    """The keys of every task."""
    config = ConfigDict()
    config.task = task  # a file of gradalign_jax/tasks
    config.seed = 0  # everything random derives from it
    config.devices = 0  # number of devices; 0: as many as are there and divide the batch
    # policy: products as config.precision says; highest: float32 in every product, whatever config.precision says
    config.matmul_precision = "policy"
    # float32; tf32: what a GPU's tensor cores make of float32 (float32 on a CPU); bfloat16; auto: bfloat16 on a GPU or
    # TPU, float32 on a CPU. What is reported (logits that decide, distances, alignments, L_proj) is float32, always.
    config.precision = ConfigDict({part: PRECISION[part] for part in _PRODUCTS[task]})

    config.data = ConfigDict()
    config.data.name = dataset
    config.data.dir = ""  # of tensorflow_datasets; "": $TFDS_DATA_DIR, else its default place
    config.data.cache = ""  # of decoded arrays; "": $XDG_CACHE_HOME/gradalign_jax, else ~/.cache/gradalign_jax
    config.data.limit = 0  # images per split; 0: all
    return config


def _model_and_training(config: ConfigDict, model: dict) -> None:
    config.model = ConfigDict(
        MODELS[model["name"]] | model
    )  # name: a file of gradalign_jax/models; the rest are options of its `create`
    config.model.pretrained = ""  # safetensors file of ImageNet weights or of a run, or hf:owner/name; "": from scratch

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-4
    config.optimizer.b1 = 0.0  # adam (the authors': 0 and 0.9 for the binary data sets, 0.5 and 0.999 for MNIST)
    config.optimizer.b2 = 0.9

    config.train = ConfigDict()
    config.train.batch_size = 12  # over all devices
    config.train.epochs = 30
    config.train.steps_per_epoch = 200  # 0: as many as the data set has whole batches
    config.train.log_every = 50  # steps, rounded down to a divisor of the epoch
    config.train.checkpoint_minutes = 5.0  # besides the one after every epoch


def measured(config: ConfigDict, dimensions: int) -> ConfigDict:
    """Adds the keys of how a classifier is measured, in every task that does."""
    config.attack = ConfigDict()  # PGD L∞, for training by method pgd, for validation and for the test
    config.attack.step_size = 0.02  # η
    config.attack.steps = 40  # k
    config.attack.loss = "margin"  # margin | cross_entropy
    config.attack.clip = "range"  # range: clamp to [-1, 1] (the paper); data: to the data's own range where wider

    config.evaluate = ConfigDict()  # of the best epoch, on the test split
    config.evaluate.images = 0  # the first so many of the test split; 0: all
    config.evaluate.block = 0  # images per device and program; 0: 100 on a CPU, else as many as memory allows
    config.evaluate.linf_epsilons = ()  # of PGD L∞ and of Square Attack
    config.evaluate.l2_epsilons = ()
    config.evaluate.l2_step_size = 0.02 * math.sqrt(dimensions)  # η∞ √n
    config.evaluate.square_queries = 0  # of Square Attack; 0: leave it out (paper A.1: 5000)
    config.evaluate.square_images = 0  # the first so many of those; 0: all
    config.evaluate.cw_images = 0  # the first so many that Carlini-Wagner attacks too (Figure 7); 0: none
    config.evaluate.cw_iterations = 10_000  # of each of its 9 descents, at most
    config.evaluate.cw_learning_rate = 0.02  # of its Adam; must be small beside the distances
    config.evaluate.generator = ""  # as in delta_x, for ᾱ_Δx; the paper takes another one than training's
    config.evaluate.store = ""
    config.evaluate.same_generator = False  # allow the one that trained
    return config


def evaluate(dataset: str, dimensions: int) -> ConfigDict:
    """The keys of an evaluation of a finished classifier run; its model, method and seed are that run's."""
    config = measured(base(dataset, "evaluate"), dimensions)
    del config.seed
    config.classifier = ""  # directory of the finished run
    config.evaluate.square_queries = 5000
    return config


def classifier(dataset: str, task: str, dimensions: int, model: dict) -> ConfigDict:
    """The keys of a classifier run, or of an evaluation, with the values that most data sets share."""
    if task == "evaluate":
        return evaluate(dataset, dimensions)
    config = measured(base(dataset, "classifier"), dimensions)
    config.method = task  # baseline | align | pgd

    _model_and_training(config, model)
    config.optimizer.name = "adam"  # adam | sgd
    config.optimizer.momentum = 0.9  # sgd

    config.align = ConfigDict()  # for method align
    config.align.weight = 0.1  # λ_α (Eq. 9)

    config.delta_x = ConfigDict()  # the Δx of method align; both "": the exact one
    config.delta_x.generator = ""  # directory of a finished vrgan run
    config.delta_x.store = ""  # directory of a finished project run

    config.attack.epsilon = 0.3  # of pgd training (paper A.1)

    config.validate = ConfigDict()
    config.validate.every_epochs = 1
    config.validate.images = 0  # the first so many of the validation split; 0: all
    config.validate.first_epoch = 0  # earlier epochs (from 0) are not candidates for the best one
    config.validate.epsilons = ()  # the L∞ grid; its ε50% selects the epoch
    return config


def gan(dataset: str, iterations: int = 125_000, smoke: bool = False) -> ConfigDict:
    """The keys of a conditional GAN's run, with the authors' values."""
    config = base(dataset, "gan")
    config.optimizer = ConfigDict()  # Adam, for either network
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b1 = 0.0
    config.optimizer.b2 = 0.999

    config.train = ConfigDict()
    config.train.batch_size = 50  # over all devices, of each step of the discriminator and of the generator
    config.train.log_every = 50  # iterations, rounded down to a divisor of sample_every and of the data's epoch
    config.train.checkpoint_minutes = 5.0  # besides the one with every picture

    config.gan = ConfigDict()
    config.gan.width = 256  # channels of both networks
    config.gan.latent_dim = 128
    config.gan.iterations = iterations  # one step of the generator each
    config.gan.d_steps = 4  # of the discriminator before each step of the generator
    config.gan.feature_matching = 1.0  # weight in the generator's loss
    config.gan.hinge = 0.05  # likewise
    config.gan.ema_decay = 0.9999  # of the averaged generator that is kept beside the raw one
    config.gan.ema_start = 1000  # iteration before which the average is a copy
    config.gan.use_validation = True  # train on the classifier's validation split as well (the authors)
    config.gan.sample_every = 1000  # iterations between pictures; divides `iterations`
    config.gan.sample_columns = 10  # samples of each class in a picture
    config.gan.check_images = 100  # samples of each class, for the check at the end
    config.gan.classifier = ""  # directory of a finished classifier run, for that check
    if smoke:
        config.data.limit = 1000
        config.train.log_every = 5
        config.gan.width = 16
        config.gan.iterations = 40
        config.gan.sample_every = 20
        config.gan.check_images = 50
    return config


def project(dataset: str, penalty: float, learning_rate: float, batch: int, smoke: bool = False) -> ConfigDict:
    """The keys of a projection's run. `batch`: the authors' batch, over which they average the loss."""
    config = base(dataset, "project")
    config.project = ConfigDict()
    config.project.generator = ""  # directory of a finished gan run
    config.project.ema = False  # its averaged weights instead of the raw ones that the authors took
    config.project.splits = ("train", "validation", "test")
    config.project.images = 0  # the first so many of each split; 0: all
    config.project.skip_own_class = False  # leave out each image's own class, which Δx never asks for
    config.project.steps = (600, 150)  # of Adam, without the penalty and then with it (paper A.3)
    config.project.learning_rate = (learning_rate, learning_rate)
    config.project.penalty = penalty  # λ_Regz (Eq. 15)
    config.project.eps = 1e-8 * batch  # Adam's ε for the loss of one pair; 1e-8 for a mean over the authors' batch
    config.project.block = (
        0  # pairs per device and program, and of a stored shard; 0: 16 on a CPU, else as many as memory allows
    )
    if smoke:
        config.data.limit = 512
        config.project.splits = ("train", "test")
        config.project.steps = (8, 2)
        config.project.block = 64
    return config


def vrgan(dataset: str, model: dict, generator: dict, smoke: bool) -> ConfigDict:
    """The keys of a VR-GAN run (section 2.3.1): a generator of Δ̂x, and as critic the data set's classifier."""
    config = base(dataset, "vrgan")
    _model_and_training(config, model)

    config.generator = ConfigDict(
        generator
    )  # name: a file of gradalign_jax/models; the rest are options of its `create`

    config.vrgan = ConfigDict()  # weights of the losses
    config.vrgan.real = 1.0  # L_Dx, of the critic
    config.vrgan.generated = 0.01  # L_Dx', of the critic
    config.vrgan.fool = 0.3  # L_G
    config.vrgan.small = 0.5  # L_RegG

    config.validate = ConfigDict()  # logged; the smallest mean training loss selects the epoch
    config.validate.every_epochs = 1
    config.validate.images = 0  # the first so many of the validation split; 0: all

    config.evaluate = ConfigDict()
    config.evaluate.images = 0  # the first so many of the test split; 0: all
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
    """The L2 grid that the paper pairs with an L∞ grid: ε √n."""
    return tuple(epsilon * math.sqrt(dimensions) for epsilon in epsilons)


def smoke(config: ConfigDict) -> ConfigDict:
    """Shrinks a run to a minute or two on a laptop's CPU, on real data and through every stage."""
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
