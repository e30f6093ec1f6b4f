"""The Python blocks of the READMEs, as a reader would use them: files are put where their first line says."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ROOT = Path(__file__).resolve().parents[1]


def python_blocks(readme):
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / readme).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_measure_your_own_model():
    (block,) = python_blocks("README.md")
    names = {}
    exec(block, names)
    result, images, weights = (names[name] for name in ("result", "images", "weights"))
    assert result["accuracy"] == 1
    # Linear: PGD L∞ crosses at a distance of |margin| / |difference of the weights|₁.
    margin = np.abs(np.diff(images.reshape(len(images), -1) @ weights))
    distance = margin / np.abs(np.diff(weights)).sum()
    for epsilon, error in zip(*(result["curves"]["pgd_linf"][name] for name in ("epsilons", "errors")), strict=True):
        # Pixels near the border of [-1, 1] cannot move by all of ε, so fewer images are misclassified than unbounded.
        assert error <= (distance < epsilon).mean() + 1e-6


def test_your_own_model_on_a_cpu():
    """The network of the example equals the same network of XLA's convolutions, and so does its input gradient."""
    names = {}
    exec(python_blocks("gradalign_jax/README.md")[0], names)
    random = np.random.default_rng(0)
    sizes = ((3, 8), (8, 8), (8, 4))
    params = {
        "kernels": [jnp.asarray(random.normal(size=(3, 3, *size)) / 8, jnp.float32) for size in sizes],
        "head": jnp.asarray(random.normal(size=(4, 2)), jnp.float32),
    }
    image = jnp.asarray(random.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32)

    def reference(image):
        layout = ("NHWC", "HWIO", "NHWC")
        for kernel, stride in zip(params["kernels"], (1, 2, 2), strict=True):
            pads = ((1, 1), (1, 1))
            image = lax.conv_general_dilated(image, kernel, (stride, stride), pads, dimension_numbers=layout)
            image = jax.nn.relu(image)
        return image.mean((1, 2)) @ params["head"]

    ours = partial(names["logits_fn"], params=params)
    chex.assert_trees_all_close(ours(image), reference(image), atol=1e-5)
    gradients = [jax.grad(lambda x, f=f: f(x)[:, 0].sum())(image) for f in (ours, reference)]
    chex.assert_trees_all_close(*gradients, atol=1e-5)


def test_extensions(tmp_path):
    _, *files, together = python_blocks("gradalign_jax/README.md")
    assert len(files) == 4
    shutil.copytree(ROOT / "gradalign_jax", tmp_path / "gradalign_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for block in files:
        path = tmp_path / re.match(r"# (\S+)\n", block)[1]
        assert path.parent.is_dir()
        assert not path.exists()
        path.write_text(block, encoding="utf-8")
    # FGSM from the image itself is one step of PGD; class means are NumPy's; the classifier learned.
    checks = """
import numpy as np
from gradalign_jax.attacks import pgd
image = data.to_float(test.image)
one_step = pgd.make("linf", steps=1, random_start=False)(logits_fn, jax.random.key(0), image, test.label, 0.4, 0.4)
np.testing.assert_allclose(attacked, one_step, atol=1e-6)
mean = np.stack([np.asarray(images)[train.label == c].mean(0) for c in (0, 1)])
np.testing.assert_allclose(delta_x(image, test.label, 1 - test.label, None), mean[1 - test.label] - image, atol=1e-5)
assert result["accuracy"] > 0.95, result["accuracy"]
assert result["alpha_delta_x"] > 0.8, result["alpha_delta_x"]
assert error > 0.5, error
"""
    command = [sys.executable, "-c", together + checks]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert answer.returncode == 0, answer.stderr[-2000:]
