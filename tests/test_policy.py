"""The precision policy, checked on the programs that a run compiles for a GPU and a TPU (no device needed)."""

import jax
import pytest

from gradalign_jax.ops import platform
from launch.compiled import policy, programs


@pytest.fixture(autouse=True)
def reported_precision():
    with jax.default_matmul_precision("highest"):  # as main sets it
        yield
    jax.clear_caches()  # programs of the paper's size take a lot of memory


def lowered(name, kind, lowering, **changes):
    with platform.target(kind):
        program = programs.PROGRAMS[name](jax.local_devices()[:1], **changes)
        return program.traced.lower(lowering_platforms=(lowering,)).compiler_ir("stablehlo")


def test_every_program_has_its_rule():
    assert policy.RULES.keys() == programs.PROGRAMS.keys()


@pytest.mark.parametrize("kind, lowering", [("gpu", "cuda"), ("tpu", "tpu")])
@pytest.mark.parametrize("name", policy.RULES)
def test_programs_keep_the_policy(name, kind, lowering):
    assert policy.violations(name, policy.products(lowered(name, kind, lowering))) == []


@pytest.mark.parametrize(
    ("name", "changes", "line"),
    [
        ("mnist_pgd", {"precision.attack": "tf32"}, "a search convolves f32 x f32 -> f32"),
        ("cifar_evaluate", {"precision.evaluation": "float32"}, "at loop depth 1 has the highest precision"),
        ("mnist_pgd", {"matmul_precision": "highest"}, "at loop depth 1 has the highest precision"),
    ],
)
def test_a_violation_is_found(name, changes, line):
    assert line in " ".join(policy.violations(name, policy.products(lowered(name, "gpu", "cuda", **changes))))


def test_kernel_preparation_in_a_loop_is_found():
    """A program traced for a CPU flips its kernels in every iteration."""
    found = policy.products(lowered("cifar_pgd", "cpu", "cuda"))
    assert any("a search" in line for line in policy.violations("cifar_pgd", found))
