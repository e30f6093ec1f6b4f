"""gradalign_jax: in which direction do the input gradients of robust classifiers point?"""

__version__ = "0.1.0"
