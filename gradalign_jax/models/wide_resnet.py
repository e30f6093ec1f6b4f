"""Wide residual networks for CIFAR-10 (Zagoruyko and Komodakis 2016).

WRN-28-10 and WRN-34-10 are the most used networks of adversarial training. Layers have the names of RobustBench's
`WideResNet` (Zhang et al. 2019, TRADES, and its followers) or `DMWideResNet` (Gowal et al. 2020, DeepMind, and its
followers).
"""

from collections.abc import Sequence

from gradalign_jax.models import preactivation
from gradalign_jax.types import Classifier

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
_TRADES = preactivation.Names(shortcut="convShortcut", norm="bn1", head="fc")
_DEEPMIND = preactivation.Names(
    "init_conv", "batchnorm_0", "conv_0", "batchnorm_1", "conv_1", "shortcut", "batchnorm", "logits"
)


def create(
    num_classes: int,
    depth: int = 28,
    width: int = 10,
    style: str = "trades",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    frozen_norm: bool = False,
    axis_name: str | None = None,
) -> Classifier:
    """Build a WRN-`depth`-`width` of images `[B, H, W, 3]` in [-1, 1], with PyTorch's default initialization.

    Args:
      num_classes: K.
      depth: number of layers, 6 n + 4 with n blocks in each of the three stages.
      width: the stages have 16, 32 and 64 times as many channels.
      style: "trades", or "deepmind": swish instead of ReLU, TensorFlow's padding, other names.
      mean, std: of the channels of images in [0, 1], by which the model normalizes its input; None: as the PyTorch code
        does, not at all ("trades") or by CIFAR-10's ("deepmind").
      frozen_norm: batch norm always uses its stored statistics; otherwise, in training, the batch's.
      axis_name: the mapped axis over which batch statistics are averaged.

    Raises:
      ValueError: if no network has this depth, or the style is another.
    """
    if depth < 10 or depth % 6 != 4:
        raise ValueError(f"depth={depth} is not valid: use 6 n + 4, such as 28 or 34")
    if style not in ("trades", "deepmind"):
        raise ValueError(f"style={style!r} is not valid: use 'trades' or 'deepmind'")
    deepmind = style == "deepmind"
    name = "layer.{}.block.{}" if deepmind else "block{}.layer.{}"
    blocks = [
        (name.format(stage if deepmind else stage + 1, block), 16 * width * 2**stage, 2 if stage and not block else 1)
        for stage in range(3)
        for block in range((depth - 4) // 6)
    ]
    plan = preactivation.Plan(
        16,
        tuple(blocks),
        _DEEPMIND if deepmind else _TRADES,
        tuple(mean or (CIFAR10_MEAN if deepmind else (0.0, 0.0, 0.0))),
        tuple(std or (CIFAR10_STD if deepmind else (1.0, 1.0, 1.0))),
        activation="swish" if deepmind else "relu",
        strided_pads=preactivation.SAME if deepmind else preactivation.EVEN,
    )
    return preactivation.classifier(plan, num_classes, frozen_norm, axis_name)
