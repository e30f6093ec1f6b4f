"""advertorch's public LeNets: our layers against PyTorch, our attacks against adv-lib, their published robustness.

Runs if ADVERTORCH names advertorch-0.2.3.tar.gz and TFDS_DATA_DIR holds MNIST:

    ADVERTORCH=advertorch-0.2.3.tar.gz python -m pytest tests/test_public_lenet.py
"""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

import peers
from gradalign_jax.attacks import apgd

torch = pytest.importorskip("torch")
from launch import lenet  # noqa: E402

ARCHIVE = Path(os.environ.get("ADVERTORCH", ""))
pytestmark = pytest.mark.skipif(
    not ARCHIVE.is_file() or "TFDS_DATA_DIR" not in os.environ,
    reason="ADVERTORCH names no advertorch-0.2.3.tar.gz, or TFDS_DATA_DIR no prepared MNIST",
)


@pytest.mark.parametrize(("training", "robust"), [("adv", (0.85, 1.0)), ("cln", (0.0, 0.05))])
def test_agrees_with_pytorch_and_is_as_robust_as_trained(training, robust):
    """PGD training at ε .3 left a robust accuracy above 90 %; the other model has none there."""
    theirs = peers.adv_lib("attacks.auto_pgd", loss_best_last_check="loss_best.clone()")
    weights = lenet.read(ARCHIVE, training)
    ours, peer = lenet.logits_fn(weights), lenet.torch_logits_fn(weights)
    image, label = lenet.images(50)
    images, labels = torch.from_numpy(image).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(label).long()
    logits = np.asarray(jax.jit(ours)(image))
    np.testing.assert_allclose(logits, peer(images).numpy(), rtol=1e-4, atol=1e-4)
    assert np.mean(logits.argmax(1) == label) >= 0.96
    run = jax.jit(apgd.search("linf", 20, random_start=False, bounds=(0.0, 1.0)), static_argnums=0)
    found = run(ours, jax.random.key(0), image, label, 0.3)
    size = torch.full((50,), 0.3)
    _, fooled, _, _ = theirs._apgd(peer, images, labels, size, np.inf, images, n_iter=20, loss_function="ce")
    assert np.sum(np.asarray(found.fooled) != fooled.numpy()) <= 1  # rounding, amplified by the signs
    assert robust[0] <= 1 - np.mean(found.fooled) <= robust[1]
