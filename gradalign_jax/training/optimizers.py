"""The optimizers of the paper's training."""

import optax


def adam(learning_rate: float, b1: float, b2: float) -> optax.GradientTransformation:
    """Build Adam with ε = 1e-8 outside the root, as in PyTorch.

    With b1 = 0, the paper's value for its binary data sets, the first moment is the gradient and is not stored: a step
    of a small model is bound by its optimizer's memory traffic, a quarter of which is the first moment.
    """
    if b1 == 0:
        return optax.rmsprop(learning_rate, decay=b2, eps=1e-8, eps_in_sqrt=False, bias_correction=True)
    return optax.adam(learning_rate, b1, b2)
