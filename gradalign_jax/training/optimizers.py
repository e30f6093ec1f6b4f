"""The optimizers of the paper's training."""

import optax


def adam(learning_rate: float, b1: float, b2: float) -> optax.GradientTransformation:
    """Adam with ε = 1e-8 outside the root (PyTorch's); without a first moment where b1 = 0 makes it the gradient.

    The paper's binary data sets train with b1 = 0. A step of a small model is bound by the memory that its
    optimiser moves, and the first moment is a quarter of that.
    """
    if b1 == 0:
        return optax.rmsprop(learning_rate, decay=b2, eps=1e-8, eps_in_sqrt=False, bias_correction=True)
    return optax.adam(learning_rate, b1, b2)
