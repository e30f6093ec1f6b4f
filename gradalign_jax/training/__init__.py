"""Training as pure steps: a classifier by three methods (exported here), the VR-GAN, and the conditional GAN."""

from gradalign_jax.training.chunk import make_chunk
from gradalign_jax.training.classifier import METHODS, StepInputs, TrainState, create_state, make_step
from gradalign_jax.training.optimizers import adam

__all__ = ["METHODS", "StepInputs", "TrainState", "adam", "create_state", "make_chunk", "make_step"]
