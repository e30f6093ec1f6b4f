"""AutoAttack and MALT in PyTorch: APGD and FAB-T of adv-lib, Square Attack of this folder.

As in the authors' AutoAttack, each attack gets only the images that the ones before it left.
"""

import functools
import importlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.abc import SourceLoader
from importlib.machinery import PathFinder
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import Tensor

from gradalign_jax.attacks import square
from launch.bench.torch_peer import lean
from launch.bench.torch_peer.square import make_query

Model = Callable[[Tensor], Tensor]  # images [B, C, H, W] in [0, 1] -> logits [B, K]
NORMS = {"linf": torch.inf, "l2": 2}


def import_alone(package: str, module: str) -> types.ModuleType:
    """Import `PACKAGE.MODULE` and no other module of the package, whose dependencies may be missing.

    Raises:
      ModuleNotFoundError: if the package is not installed.
    """
    found = PathFinder.find_spec(package)  # also finds a package whose parent below stands in for it
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"{package} is not installed: pip install --no-deps {package.replace('_', '-')}")
    parts = module.split(".")
    for end in range(len(parts)):
        name = ".".join([package, *parts[:end]])
        if name not in sys.modules:
            parent = types.ModuleType(name)
            parent.__path__ = [str(Path(found.submodule_search_locations[0]).joinpath(*parts[:end]))]
            sys.modules[name] = parent
    return importlib.import_module(f"{package}.{module}")


def adv_lib(module: str, **corrections: str) -> types.ModuleType:
    """Import `adv_lib.MODULE`, without the package's other attacks, which need torchvision and visdom.

    `corrections` are assignments in its source: variable="right-hand side" replaces the last one of that variable.
    """
    loaded = import_alone("adv_lib", module)
    if not corrections:
        return loaded
    spec = spec_from_loader(f"{loaded.__name__}_corrected", _Corrected(str(loaded.__file__), corrections))
    corrected = module_from_spec(spec)
    spec.loader.exec_module(corrected)
    return corrected


class _Corrected(SourceLoader):
    """Loads a module's source with some right-hand sides replaced."""

    def __init__(self, path: str, corrections: Mapping[str, str]):
        self._path, self._corrections = path, corrections

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_data(self, path: str) -> bytes:
        source = Path(path).read_text()
        for variable, value in self._corrections.items():
            before, after = source.rsplit(f" {variable} = ", 1)
            source = f"{before} {variable} = {value}\n{after.split(chr(10), 1)[1]}"
        return source.encode()


@functools.cache
def auto_pgd() -> types.ModuleType:
    """Return adv-lib's APGD with the authors' rule for halving the step size.

    adv-lib 0.2.8 does not copy the best loss at a checkpoint, as the authors do, and so never sees it improve.
    """
    return adv_lib("attacks.auto_pgd", loss_best_last_check="loss_best.clone()")


def fab() -> types.ModuleType:
    """Return adv-lib's FAB."""
    return adv_lib("attacks.fast_adaptive_boundary.fast_adaptive_boundary")


def nearest_classes(model: Model, image: Tensor, label: Tensor, count: int) -> Tensor:
    """Return the `count` classes with the nearest linearized boundary in L∞, nearest first, `[B, T]` (MALT)."""
    image = image.detach().requires_grad_(True)
    logits = model(image)
    jacobian = lean.input_jacobian(logits, image).flatten(2)
    rows = torch.arange(len(label))
    size = (jacobian[rows, label][:, None] - jacobian).abs().sum(2)
    distance = (logits[rows, label][:, None] - logits) / size
    distance[rows, label] = torch.inf
    return distance.detach().topk(min(count, logits.shape[1] - 1), largest=False).indices


def _targeted(model: Model, image: Tensor, label: Tensor, epsilon: float, targets: Tensor, steps: int) -> Tensor:
    """Return which images APGD with the targeted DLR loss fools, one class after the other, bool `[B]`."""
    attack, fooled = auto_pgd()._apgd, torch.zeros(len(label), dtype=torch.bool)
    for turn in range(targets.shape[1]):
        left = (~fooled).nonzero()[:, 0]
        if not len(left):
            break
        size = torch.full((len(left),), epsilon)
        options = {"norm": torch.inf, "targeted": True, "n_iter": steps}
        _, _, _, found = attack(model, image[left], targets[left, turn], size, **options)
        with torch.no_grad():
            fooled[left] = model(found).argmax(1) != label[left]
    return fooled


def _square(model: Model, image: Tensor, label: Tensor, epsilon: float, queries: int) -> Tensor:
    """Return which images Square Attack fools in L∞, bool `[B]`; fooled ones leave every 100 queries."""
    side_length = partial(square.side_length, pixels=image[0, 0].numel(), queries=queries, initial_fraction=0.8)
    sides = np.asarray(jax.vmap(side_length)(jnp.arange(queries))).clip(max=min(image.shape[2:]))
    columns = torch.randint(2, (*image.shape[:2], 1, image.shape[3])) * 2.0 - 1
    sign = columns.expand_as(image).clone()
    state = sign, torch.full((len(label),), torch.inf)
    left, fooled = torch.arange(len(label)), torch.zeros(len(label), dtype=torch.bool)
    query, side = None, 0
    for number in range(queries):
        if query is None or side != int(sides[number]):
            side = int(sides[number])
            query = make_query(model, "lean", epsilon, side, (0.0, 1.0))
        state = query(image[left], label[left], state)
        if number % 100 == 99 or number == queries - 1:
            alive = state[1] > 0
            fooled[left[~alive]] = True
            left, state = left[alive], (state[0][alive], state[1][alive])
            if not len(left):
                break
    return fooled


def autoattack(model: Model, image: Tensor, label: Tensor, epsilon: float, steps: int, queries: int) -> Tensor:
    """Return which images AutoAttack leaves correctly classified at ε in L∞, bool `[B]`."""

    def untargeted(image, label):
        size = torch.full((len(label),), epsilon)
        _, fooled, _, _ = auto_pgd()._apgd(model, image, label, size, torch.inf, n_iter=steps, loss_function="ce")
        return fooled

    def targeted(image, label):
        with torch.no_grad():
            wrong = model(image).scatter(1, label[:, None], -torch.inf)
        targets = wrong.topk(min(9, wrong.shape[1] - 1)).indices
        return _targeted(model, image, label, epsilon, targets, steps)

    def boundary(image, label):
        found = fab().fab(model, image, label, torch.inf, steps, targeted_restarts=True)
        with torch.no_grad():
            return (model(found).argmax(1) != label) & ((found - image).flatten(1).abs().amax(1) <= epsilon)

    def black_box(image, label):
        return _square(model, image, label, epsilon, queries)

    return _run(model, image, label, (untargeted, targeted, boundary, black_box))


def malt(model: Model, image: Tensor, label: Tensor, epsilon: float, steps: int, queries: int) -> Tensor:
    """Return which images MALT leaves correctly classified at ε in L∞, bool `[B]`."""

    def targeted(image, label):
        targets = nearest_classes(model, image, label, 9)
        return _targeted(model, image, label, epsilon, targets, steps)

    return _run(model, image, label, (targeted,))


def _run(model: Model, image: Tensor, label: Tensor, attacks: Sequence[Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
    """Return which images no attack fools, each attack on those that are left."""
    with torch.no_grad():
        robust = model(image).argmax(1) == label
    for attack in attacks:
        left = robust.nonzero()[:, 0]
        if len(left):
            robust[left] = ~attack(image[left], label[left])
    return robust
