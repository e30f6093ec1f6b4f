"""PreActResNet-18 for CIFAR-10 (He et al. 2016, "Identity mappings in deep residual networks").

Layers have the names of RobustBench's `PreActResNet`, of which Rice et al. 2020 ("Overfitting in adversarially robust
deep learning") and Wong et al. 2020 ("Fast is better than free") use two variants.
"""

from collections.abc import Sequence

from gradalign_jax.models import preactivation
from gradalign_jax.types import Classifier


def create(
    num_classes: int,
    blocks: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    final_norm: bool = True,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    frozen_norm: bool = False,
    axis_name: str | None = None,
) -> Classifier:
    """Build a PreActResNet-18 of images `[B, H, W, 3]` in [-1, 1], with PyTorch's default initialization.

    Args:
      num_classes: K.
      blocks: number of blocks in each of the four stages.
      width: channels of the first stage; each stage has twice those of the one before.
      final_norm: batch norm and ReLU before the last layer, and shortcuts read the activated image, as in Rice et al.
        2020; False: neither, as in Wong et al. 2020.
      mean, std: of the channels of images in [0, 1], by which the model normalizes its input.
      frozen_norm: batch norm always uses its stored statistics; otherwise, in training, the batch's.
      axis_name: the mapped axis over which batch statistics are averaged.
    """
    stages = [
        (f"layer{stage + 1}.{block}", width * 2**stage, 2 if stage > 0 and block == 0 else 1)
        for stage, number in enumerate(blocks)
        for block in range(number)
    ]
    names = preactivation.Names(norm="bn" if final_norm else "")
    plan = preactivation.Plan(width, tuple(stages), names, tuple(mean), tuple(std), activated_shortcut=final_norm)
    return preactivation.classifier(plan, num_classes, frozen_norm, axis_name)
