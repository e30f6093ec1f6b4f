"""The entry point on the command line: help, wrong input, and a whole smoke run."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs import cifar10, common, mnist, mnist35, spheres, squares, squares32
from gradalign_jax import config_keys, main
from gradalign_jax.experiment import config_checks, config_rules

ROOT = Path(__file__).resolve().parents[1]


def typed(*arguments, cwd=ROOT, **environment):
    command = [sys.executable, "-m", "gradalign_jax.main", *arguments]
    settings = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    return subprocess.run(command, cwd=cwd, env=settings, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config=configs/spheres.py:pdg"], "did you mean 'pgd'"),
        (["--config=configs/spheres.py:pgd,smke"], "did you mean 'smoke'"),
        (["--config=configs/sphere.py:pgd"], "did you mean configs/spheres.py"),
        (["--config.attack.epsilo=0.1"], "did you mean 'epsilon'"),
        (["--config.atack.epsilon=0.1"], "did you mean 'attack'"),
        (["--config.attack.epsilon=abc"], "could not convert string to float: 'abc'"),
        (["--config.attack.epsilon=-0.1"], "config.attack.epsilon=-0.1 must be >= 0"),
        (["--config.attack.epsilon=nan"], "config.attack.epsilon=nan"),
        (["--config.method=pdg"], "must be one of baseline, align, pgd"),
        (["--config.validate.epsilons=(0.2, 0.1)"], "ascending"),
        (["--config.validate.epsilons=('a',)"], "config.validate.epsilons=('a',) must be"),
        (["--config.validate.first_epoch=9"], "config.validate.first_epoch=9"),
        (["--config.devices=4"], "not a multiple of config.devices=4"),
        (
            ["--config.evaluate.linf_epsilons[0]=0.1"],
            "config.evaluate.linf_epsilons can only be changed as a whole: --config.",
        ),
        (["--config=configs/mnist.py:align"], "mnist has no exact Δx"),
        (["--config=configs/mnist.py:pgd", "--config.model.pretrained=nowhere"], "no such file"),
        (["--config.task=classify"], "config.task='classify' must be one of classifier"),
        (["--config=configs/spheres.py:evaluate"], "config.classifier is not given"),
        (["--config=configs/mnist.py:evaluate", "--config.classifier=nowhere"], "config.classifier='nowhere'"),
        (["--config.evaluate.square_queries=-1"], "must lie in 0 to 200000"),
        (["--config.seed=-1"], "config.seed=-1 must lie in 0 to 4294967295"),
        (
            ["--config=configs/mnist35.py:vrgan", "--config.generator.width=0"],
            "config.generator.width=0 must lie in 1 to 100000",
        ),
        (["--cofig=x"], "Did you mean: config"),
        (["configs/spheres.py"], "unexpected argument"),
    ],
    ids=str,
)
def test_wrong_input_gets_one_line_fast(arguments, named):
    started = time.monotonic()
    answer = typed(*arguments)
    assert answer.returncode == 2
    assert answer.stderr.count("\n") == 1, answer.stderr
    assert named in answer.stderr
    assert time.monotonic() - started < 3


def test_a_home_directory_is_expanded_in_every_path(monkeypatch):
    answer = typed("--config=configs/mnist.py:evaluate", "--config.classifier=~/none", HOME="/nowhere")
    assert "config.classifier='/nowhere/none': no such directory" in answer.stderr
    answer = typed("--config=~/none.py:pgd", HOME="/nowhere")
    assert answer.stderr == "gradalign_jax: no config file /nowhere/none.py\n"
    monkeypatch.setenv("HOME", "/nowhere")
    for module, task in ((mnist, "align"), (mnist, "evaluate"), (mnist, "gan"), (mnist, "project"), (mnist35, "vrgan")):
        config = module.get_config(task)
        names = ("delta_x.name", "evaluate.delta_x")  # the only empty keys that are not paths
        paths = [key for key, value in config_keys.flatten(config.to_dict()) if value == "" and key not in names]
        config.update_from_flattened_dict(dict.fromkeys(paths, "~/x"))
        config_checks.expand_home(config)
        assert {value for key, value in config_keys.flatten(config.to_dict()) if key in paths} == {"/nowhere/x"}


def test_another_package_called_configs_does_not_matter(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "__init__.py").write_text("raise ImportError('another package')")
    answer = typed(f"--config={ROOT}/configs/spheres.py:pdg", cwd=tmp_path)
    assert "did you mean 'pgd'" in answer.stderr, answer.stderr


def test_configs_are_found_outside_a_checkout(tmp_path):
    """The installed package's configs are used, unless the current directory has its own."""
    command = [sys.executable, "-m", "gradalign_jax.main", "--config=configs/spheres.py:pdg"]
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 60, "check": False}
    answer = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)
    assert "did you mean 'pgd'" in answer.stderr
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "spheres.py").write_text("def get_config(argument):\n    raise ValueError('my own')\n")
    answer = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **options)
    assert answer.stderr == "gradalign_jax: my own\n"


def test_help_is_fast_and_shows_a_command():
    started = time.monotonic()
    answer = typed("--help")
    assert answer.returncode == 0
    assert "python -m gradalign_jax.main --config=configs/" in answer.stdout
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("module", [spheres, squares, squares32, mnist35, mnist, cifar10], ids=lambda m: m.__name__)
def test_every_config_passes_its_own_check(module):
    for method in common.METHODS:
        for argument in (method, f"{method},smoke"):
            config = module.get_config(argument)
            assert config.method == method
            if method == "align" and config.data.name not in config_rules.EXACT_DELTA_X:
                with pytest.raises(ValueError, match="no exact Δx"):
                    config_checks.check(config)
            else:
                config_checks.check(config)
    for argument in ("evaluate", "evaluate,smoke"):
        config = module.get_config(argument)
        with pytest.raises(ValueError, match="classifier is not given"):
            config_checks.check(config)
        config.classifier = str(ROOT)
        config_checks.check(config)
        assert (config.evaluate.square_queries == 5000) == (argument == "evaluate")  # paper A.1
    assert (
        module.get_config("pgd").attack.epsilon
        == {
            "spheres": 0.005,
            "squares": 0.2,
            "squares32": 0.2,
            "mnist35": 0.3,
            "mnist": 0.3,
            "cifar10": 0.01,
        }[module.__name__.removeprefix("configs.")]
    )  # paper A.1


def test_a_finished_smoke_run_prints_its_result_again(tmp_path):
    arguments = (
        "--config=configs/squares32.py:align,smoke",
        "--config.model.name=mlp_probe",
        f"--workdir={tmp_path}",
    )
    assert (
        "config.model.name='mlp_probe' must be one of mlp, preact_resnet, resnet, wide_resnet"
        in typed(*arguments).stderr
    )
    arguments = ("--config=configs/squares32.py:align,smoke", "--config.model.name=mlp", f"--workdir={tmp_path / 'm'}")
    assert "has no option 'channels'" in typed(*arguments).stderr
    arguments = (
        "--config=configs/spheres.py:align,smoke",
        "--config.train.steps_per_epoch=20",
        "--config.evaluate.images=50",
        "--workdir=~/run",
    )
    environment = {
        "HOME": str(tmp_path),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "MPLBACKEND": "module://a_notebook.that_is_not_installed",
    }
    answer = typed(*arguments, **environment)
    assert answer.returncode == 0, answer.stderr
    assert list((tmp_path / "programs").iterdir())
    assert "ε50% PGD L∞" in answer.stdout
    assert "pictures beside it: curves.png, gradients.png" in answer.stdout
    assert f"report: python -m gradalign_jax.report {tmp_path / 'run'} --output=report" in answer.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result) >= {
        *(
            "dataset",
            "method",
            "seed",
            "accuracy",
            "epsilon_half",
            "alpha_delta_x",
            "alpha_x",
            "alpha_x_label",
        ),
        *(
            "alpha_x_target_label",
            "alpha_x_closest_predicted",
            "curves",
            "seconds",
            "devices",
            "versions",
            "config",
        ),
    }
    assert set(result["epsilon_half"]) == {"pgd_linf", "pgd_l2", "square_linf"}
    assert result["epsilon_half"]["square_linf"] is None
    for name in ("curves.png", "gradients.png", "metrics.jsonl"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    started = time.monotonic()
    assert typed(*arguments, **environment).stdout == answer.stdout
    assert time.monotonic() - started < 10
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    for encoding in (plain, {"PYTHONIOENCODING": "ascii"}):
        shown = typed(*arguments, **environment, **encoding)
        assert shown.returncode == 0, shown.stderr
        assert "eps50% PGD Linf" in shown.stdout
        assert shown.stdout.isascii()


def test_default_workdirs():
    assert main.default_workdir("configs/mnist.py:evaluate", "runs/a/") == "runs/a_evaluate"
    assert main.default_workdir("configs/cifar10.py:pgd,smoke") == "runs/cifar10_pgd_smoke"


def test_only_parallel_names_pmap():
    for file in (ROOT / "gradalign_jax").rglob("*.py"):
        assert ("jax.pmap" in file.read_text()) == (file.name == "parallel.py"), file


@pytest.mark.parametrize("task", ["pgd", "evaluate", "gan", "project"])
def test_one_switch_makes_every_product_float32(task):
    config = cifar10.get_config(task)
    assert "float32" not in config.precision.values()  # the policy of configs/common.py
    config_checks.resolve(config)
    assert "float32" not in config.precision.values()
    config.matmul_precision = "highest"
    config_checks.resolve(config)
    assert set(config.precision.values()) == {"float32"}


def test_a_platform_that_is_not_there_is_named(tmp_path):
    failed = typed("--config=configs/spheres.py:baseline,smoke", f"--workdir={tmp_path}", JAX_PLATFORMS="cuda")
    assert failed.returncode == 2
    assert re.fullmatch(r"gradalign_jax: JAX_PLATFORMS=cuda: JAX finds no such device.*\n", failed.stderr), (
        failed.stderr
    )
