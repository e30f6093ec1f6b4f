"""Runs one experiment.

    python -m gradalign_jax.main --config=configs/spheres.py:pgd --workdir=runs/spheres_pgd
    python -m gradalign_jax.main --config=configs/cifar10.py:pgd,smoke --config.seed=1 --workdir=runs/smoke

The config file's argument names the task (baseline, align, pgd, evaluate, vrgan, gan, project) and optional flags
(smoke). Any key can be changed: --config.attack.epsilon=0.01. The same command typed again goes on where the run was
stopped.
"""

import difflib
import importlib
import os
import re
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from gradalign_jax.experiment import config_checks

# Not the flag's own default: that one is loaded while the flag is defined, where no error can be explained.
_DEFAULT = "configs/spheres.py:align,smoke"
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, f"config file, and after a colon task[,flag]; default {_DEFAULT}"
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory of the run; default: runs/ and the config's name, or CLASSIFIER_evaluate"
)


def _explain(error: Exception) -> str:
    """One line from what the flag parser raises, which holds whole tracebacks at times."""
    text = str(error)
    if missing := re.search(r"No such file or directory: '([^']+)'", text):
        path = Path(missing[1])
        present = sorted(file.name for file in path.parent.glob("*.py") if file.stem != "common")
        near = difflib.get_close_matches(path.name, present, 1, 0)
        return f"no config file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    if raised := re.findall(r"^\s*\w*Error: (.+)$", text, re.MULTILINE):
        return raised[-1]
    if isinstance(error, AttributeError | KeyError):  # ml_collections' answer to a misspelt key
        key = re.search(r"'(\w+)\\?'", text)
        near = re.search(r'Did you mean "(\w+)"', text)
        return f"the config has no key {key[1] if key else text!r}" + (f"; did you mean {near[1]!r}?" if near else "")
    return " ".join(text.split())


def _first_line(error: Exception) -> str:
    """What stopped a run, in one line; of what the package did not foresee, also where to look."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    if "RESOURCE_EXHAUSTED" in line:  # outside the programs that name a value themselves (memory.py)
        return "out of device memory: lower config.evaluate.block, config.project.block or config.train.batch_size"
    foreseen = type(error).__module__.startswith("gradalign_jax")
    return line if foreseen else f"{line} (GRADALIGN_JAX_TRACEBACK=1 shows where)"


def _fail(message: str, status: int = 2) -> None:
    print(f"gradalign_jax: {message}", file=sys.stderr)
    sys.exit(status)


def _parse(argv: list[str]) -> list[str]:
    """Parses flags and checks the config's values, all before JAX is imported."""
    if not any(re.match("--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={_DEFAULT}", *argv[1:]]
    if {"-h", "-help", "--help"} & set(argv):  # absl's own answer exits with 1
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)
    for argument in argv:  # configs import their neighbours, wherever the command is typed
        if argument.startswith(("--config=", "-config=")):
            sys.path.append(str(Path(argument.partition("=")[2].partition(":")[0]).absolute().parent.parent))
    try:
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise ValueError(f"unexpected argument {rest[1]!r}: options are written --name=value")
        config_checks.check(_CONFIG.value)
        config_checks.resolve(_CONFIG.value)
    except (flags.Error, AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError, OSError) as error:
        _fail(_explain(error))
    return rest


def default_workdir(config_path: str, classifier: str = "") -> str:
    """runs/cifar10_pgd_smoke for configs/cifar10.py:pgd,smoke; DIR_evaluate for an evaluation of the run in DIR."""
    if classifier:
        return f"{os.path.normpath(classifier)}_evaluate"
    file, _, argument = config_path.partition(":")
    return os.path.join("runs", "_".join([Path(file).stem, *filter(None, argument.split(","))]))


def main(argv: list[str]) -> None:
    """Sets JAX up, opens the run's directory and hands the config to its task."""
    del argv
    config = _CONFIG.value
    path = _WORKDIR.value or default_workdir(
        config_flags.get_config_filename(flags.FLAGS["config"]), config.get("classifier", "")
    )
    logging.set_verbosity(logging.WARNING)
    import jax

    from gradalign_jax.data import cache

    # Programs compiled once are read back by the next start; set before the first array.
    jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # What is reported; searches and training choose for themselves (config.precision).
    jax.config.update("jax_default_matmul_precision", "highest")
    from gradalign_jax.storage.workdir import Workdir

    try:
        task = importlib.import_module(f"gradalign_jax.tasks.{config.task}")
        workdir = Workdir(path, config.to_dict())
        outcome = workdir.result()
        if outcome is None:
            outcome = task.run(config, workdir)
        workdir.close()
    except KeyboardInterrupt:
        _fail("stopped; type the same command to go on", 130)
    except Exception as error:
        if os.environ.get("GRADALIGN_JAX_TRACEBACK"):
            raise
        _fail(_first_line(error))
    print(f"{task.table(outcome)}\n{workdir.path}/result.json")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
