"""The evaluation's items: CIFAR's classifier under PGD at one ε, and one query of Square Attack.

Ours are the programs of an evaluation without its data: the search at its precision, then the decision in float32. No
square fools the network, so no search ends early.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradalign_jax.attacks import pgd, square
from gradalign_jax.evaluation import programs
from gradalign_jax.ops import precision
from launch.bench import classifiers, peers
from launch.bench import program as bench_program
from launch.bench.peers import to_torch, torch
from launch.bench.program import Program

if torch:
    from launch.bench.torch_peer import square as peer_square

SQUARE_EPSILON, FIRST = 0.03, 500  # the first query: early among 5,000, when windows are large


class Case:
    """CIFAR's network and `count` images; `search` is the precision of the attacks."""

    def __init__(self, count: int, search: str, attack_steps: int = 40):
        experiment = classifiers.EXPERIMENTS["cifar"]
        self.experiment = experiment._replace(image_shape=(count, *experiment.image_shape[1:]))
        self.variables, self.batch, _ = classifiers.inputs("cifar", self.experiment)
        self.variables["params"]["fc"]["bias"][0] = 100.0  # class 0 wins by far
        self.label = np.zeros(count, np.int32)
        self.search, self.attack_steps = search, attack_steps

    def attacked(self) -> Program:
        """Return PGD and the classes predicted for its images."""
        attack = pgd.make("linf", steps=self.attack_steps, loss=self.experiment.attack_loss)

        def program(variables, keys, image, label, epsilon, step_size):
            model = programs.Model(self.experiment.classifier, variables)
            with precision.scope(self.search):
                found = attack(model.searched(self.search), keys, image, label, epsilon, step_size)
            return programs.predicted(model(found))

        sizes = np.float32(self.experiment.epsilon), np.float32(self.experiment.step_size)
        keys = bench_program.keys(len(self.label))
        return Program(program, (self.variables, keys, self.batch.image, self.batch.label, *sizes))

    def queried(self, queries: int) -> Program:
        """Return queries of Square Attack and the decision on the last iterate."""
        parts = square.parts(5000)

        def program(variables, keys, image, label, epsilon, state, first, last):
            model = programs.Model(self.experiment.classifier, variables)
            with precision.scope(self.search):
                state = parts.search(model.searched(self.search), keys, image, label, epsilon, state, first, last)
            return parts.decide(model, image, label, epsilon, state)

        image, count = self.batch.image, len(self.label)
        state = square.State(np.ones(image.shape, np.int8), np.full(count, 1e3, np.float32), np.ones(count, np.int32))
        epsilon, span = np.full(count, SQUARE_EPSILON, np.float32), (np.int32(FIRST), np.int32(FIRST + queries))
        keys = bench_program.keys(count)
        return Program(program, (self.variables, keys, image, self.label, epsilon, state, *span))

    def peer(self, column: str) -> tuple[Any, Any, Any]:
        """Return PyTorch's network, images and labels for a column."""
        channels_last = column != "authors"
        network = peers.make_peer(self.experiment, self.variables, channels_last)
        return network.eval(), to_torch(self.batch.image, channels_last), to_torch(self.batch.label).long()

    def attacked_peer(self, column: str) -> Callable[[], Any]:
        """Return PyTorch's PGD and prediction."""
        network, image, label = self.peer(column)
        style = peers.style_of(column)
        attack = peers.make_attack(style, network, self.experiment, self.attack_steps, column == "compiled")

        def side():
            found = attack(image, label)
            with torch.no_grad():
                return network(found).argmax(1)

        return side

    def queried_peer(self, column: str) -> Callable[[], Any]:
        """Return PyTorch's query of Square Attack."""
        network, image, _ = self.peer(column)
        label = to_torch(self.label).long()
        with bench_program.on_host():
            side = int(square.side_length(jnp.int32(FIRST), 32 * 32, 5000, 0.8))
        style = "authors" if column == "authors" else "lean"
        query = peer_square.make_query(network, style, SQUARE_EPSILON, side)
        state = torch.ones_like(image), torch.full((len(label),), 1e3, device=image.device)
        return lambda: query(image, label, state)
