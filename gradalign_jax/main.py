"""Run one experiment.

    python -m gradalign_jax.main --config=configs/spheres.py:pgd --workdir=runs/spheres_pgd
    python -m gradalign_jax.main --config=configs/cifar10.py:pgd,smoke --config.seed=1 --workdir=runs/smoke

The config file's argument names the task (baseline, align, pgd, evaluate, vrgan, gan, project) and optional flags
(smoke). Any key can be changed: --config.attack.epsilon=0.01. Type the same command again to resume a stopped run.
"""

from gradalign_jax import stopping
from gradalign_jax.errors import first_line

if __name__ == "__main__":
    stopping.listen()  # before the slow imports

import contextlib
import difflib
import importlib
import json
import os
import re
import sys
import types
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from gradalign_jax import paths, terminal
from gradalign_jax.experiment import config_checks

# Not the flag's default: absl loads that while it defines the flag, where `_explain` cannot shorten an error.
_DEFAULT = "configs/spheres.py:align,smoke"
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    f"FILE:TASK[,FLAG]; a configs/... that does not exist here is read from the package; default {_DEFAULT}",
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "directory of the run; default: runs/ and the config's name, or CLASSIFIER_evaluate"
)


def _explain(error: Exception) -> str:
    """Return one line for an error of the flag parser, whose text may contain whole tracebacks."""
    text = str(error)
    if missing := re.search(r"No such file or directory: '([^']+)'", text):
        path = Path(missing[1])
        present = sorted(file.name for file in path.parent.glob("*.py") if file.stem != "common")
        near = difflib.get_close_matches(path.name, present, 1, 0)
        return f"no config file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    if raised := re.findall(r"^\s*\w*Error: (.+)$", text, re.MULTILINE):
        return raised[-1]
    if isinstance(error, AttributeError | KeyError):  # what ml_collections raises on a misspelled key
        key = re.search(r"'(\w+)\\?'", text)
        near = re.search(r'Did you mean "(\w+)"', text)
        return f"the config has no key {key[1] if key else text!r}" + (f"; did you mean {near[1]!r}?" if near else "")
    return " ".join(text.split())


def _reason(error: Exception) -> str:
    """Return in one line why a run failed; for an unexpected error, also how to get its traceback."""
    line = first_line(error)
    if type(error).__module__.startswith("gradalign_jax") or line.startswith("config."):
        return line
    # Not from a block with `memory.limited_by`, whose error names the key and a value that fits.
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError") and "RESOURCE_EXHAUSTED" in line:
        return "out of device memory: lower config.evaluate.block, config.project.block or config.train.batch_size"
    if _one_of_several() and re.search("peer|[Cc]onnection|[Cc]oordination|[Hh]eartbeat", line):
        return f"another process of this run has ended: start all of them again to resume ({line[:200]})"
    return f"{line} (GRADALIGN_JAX_TRACEBACK=1 shows where)"


def _one_of_several() -> bool:
    """Return whether this process has joined others (`processes.join`); does not import JAX."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def _fail(message: str, status: int = 2) -> None:
    print(f"gradalign_jax: {message}", file=sys.stderr, flush=True)
    if _one_of_several():
        os._exit(status)  # JAX's own exit would wait for the other processes, which may wait for this one
    sys.exit(status)


def _make_importable(config_file: str) -> None:
    """Let a config import its neighbors from any working directory, even if another package is called `configs`."""
    folder = Path(config_file).absolute().parent
    if folder.name == "configs":
        package = types.ModuleType("configs")
        package.__path__ = [str(folder)]
        sys.modules["configs"] = package
    else:
        sys.path.append(str(folder.parent))


def _locate(argument: str) -> str:
    """Return a --config argument; `configs/...` that does not exist here becomes the package's copy."""
    option, equals, value = argument.partition("=")
    path, colon, task = value.partition(":")
    if option not in ("--config", "-config") or not path.startswith("configs/") or os.path.exists(path):
        return argument
    package = Path(__file__).resolve().parent  # configs/ is inside an installed package, beside a checkout's
    found = next((str(root / path) for root in (package, package.parent) if (root / path).is_file()), path)
    return f"{option}{equals}{found}{colon}{task}"


def _parse(argv: list[str]) -> list[str]:
    """Parse flags and check the config's values, before JAX is imported."""
    terminal.spell_symbols()
    if not any(re.match("--?config(=|$)", argument) for argument in argv):
        argv = [argv[0], f"--config={_DEFAULT}", *argv[1:]]
    argv = [_locate(argument) for argument in argv]
    argv = [re.sub("^(--?config=)(~.*)", lambda m: m[1] + os.path.expanduser(m[2]), argument) for argument in argv]
    if {"-h", "-help", "--help"} & set(argv):  # absl itself would exit with status 1
        app.usage(shorthelp=True, writeto_stdout=True)
        sys.exit(0)
    for argument in argv:
        if config_file := re.match("--?config=([^:]+)", argument):
            _make_importable(config_file[1])
        if element := re.match(r"--?config\.([\w.]+)\[", argument):
            _fail(f"config.{element[1]} can only be changed as a whole: --config.{element[1]}='(VALUE, VALUE)'")
    try:
        rest = flags.FLAGS(argv)
        if rest[1:]:
            raise ValueError(f"unexpected argument {rest[1]!r}: options are written --name=value")
        config_checks.expand_home(_CONFIG.value)
        config_checks.check(_CONFIG.value)
        config_checks.resolve(_CONFIG.value)
    except (flags.Error, AttributeError, ImportError, KeyError, SyntaxError, TypeError, ValueError, OSError) as error:
        _fail(_explain(error))
    return rest


def default_workdir(config_path: str, classifier: str = "") -> str:
    """Return the default directory: runs/cifar10_pgd_smoke for configs/cifar10.py:pgd,smoke, or CLASSIFIER_evaluate."""
    if classifier:
        return f"{classifier.rstrip('/') if paths.is_remote(classifier) else os.path.normpath(classifier)}_evaluate"
    file, _, argument = config_path.partition(":")
    return os.path.join("runs", "_".join([Path(file).stem, *filter(None, argument.split(","))]))


def _set_up_jax() -> None:
    """Set JAX's options, before the first array."""
    os.environ.pop("MPLBACKEND", None)  # set by a notebook, its backend may be missing here; pictures go to files
    import jax

    from gradalign_jax.data import cache

    if not jax.config.jax_compilation_cache_dir:  # the next start reads the compiled programs
        jax.config.update("jax_compilation_cache_dir", str(cache.folder() / "xla"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # For reported numbers; attacks, projections and training set their own precision (config.precision).
    jax.config.update("jax_default_matmul_precision", "highest")


def _files(path: Path) -> list[str]:
    """Return a finished run's last lines: its result, its pictures, and the command that makes a report of it."""
    pictures = sorted(file.name for file in path.glob("*.png"))
    return [
        f"{path}/result.json",
        *([f"pictures beside it: {', '.join(pictures)}"] if pictures else []),
        f"report: python -m gradalign_jax.report {path} --output=report",
    ]


def main(argv: list[str]) -> None:
    """Set up JAX, open the run's directory and hand the config to its task."""
    del argv
    config, workdir = _CONFIG.value, None
    path = os.path.expanduser(_WORKDIR.value or "") or default_workdir(
        config_flags.get_config_filename(flags.FLAGS["config"]), config.get("classifier", "")
    )
    logging.set_verbosity(logging.WARNING)
    _set_up_jax()
    from gradalign_jax import parallel, processes
    from gradalign_jax.storage.workdir import Workdir

    try:
        with stopping.raised(), contextlib.ExitStack() as stack:
            processes.join()
            task = importlib.import_module(f"gradalign_jax.tasks.{config.task}")
            processes.check_shared(path)
            first = processes.is_first()
            if not first:
                terminal.be_quiet()
                processes.wait("the first process has opened the directory")
                path = stack.enter_context(processes.private_copy(paths.absolute(path)))
            workdir = Workdir(path, config.to_dict())
            if first:
                processes.wait("the first process has opened the directory")
            processes.wait("the others have copied it")
            outcome = workdir.result()
            processes.check_same("files in it", json.dumps([outcome, workdir.points()]))
            if outcome is None:
                parallel.check_platform()
                outcome = task.run(config, workdir)
            workdir.close()
    except KeyboardInterrupt as stop:
        status = stop.status if isinstance(stop, stopping.Stop) else 130
        saved = f"; {workdir.saved()}; type the same command again to resume" if workdir else ""
        _fail(f"stopped by {str(stop) or 'SIGINT'}{saved}", status)
    except Exception as error:
        if os.environ.get("GRADALIGN_JAX_TRACEBACK"):
            raise
        _fail(_reason(error))
    if first:
        print("\n".join([task.table(outcome), *_files(workdir.path)]), flush=True)


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
