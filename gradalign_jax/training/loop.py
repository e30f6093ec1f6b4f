"""The host loop over chunks of steps: resuming, progress bar, metrics, checkpoints, and stopping on NaN or a signal."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from gradalign_jax import memory, parallel, processes, records, stopping
from gradalign_jax.errors import RunError
from gradalign_jax.ops import platform
from gradalign_jax.storage.atomic import write_atomically
from gradalign_jax.storage.result import versions
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.terminal import progress_bar


def chunk_length(steps_per_epoch: int, log_every: int) -> int:
    """Return the largest divisor of an epoch up to `log_every`, so that calls of one program make up whole epochs."""
    return next(n for n in range(min(log_every, steps_per_epoch), 0, -1) if steps_per_epoch % n == 0)


def fresh(create_state: Callable[[Any], Any], key: Any) -> Any:
    """Return the state of step 0, `create_state(key)`, on the host.

    It is one program. On a CPU it is compiled with less optimization, which takes a quarter of the time for a ResNet-18
    and gives the same bits: it runs once, and LLVM takes longest for random numbers.
    """
    options = {"xla_backend_optimization_level": 1} if platform.is_cpu() else None
    return jax.device_get(jax.jit(create_state, compiler_options=options)(key))


def validation(step: int) -> str:
    """Return the prefix of the measures under which the validation after `step` records its points."""
    return f"validation of step {step}:"


def _diverged(workdir: Workdir, step: int, last_step: int, metrics: Mapping[str, np.ndarray]) -> RunError:
    """Write diverged.json, with the metrics of the last steps; return the error."""
    steps = {name: np.asarray(values, float).tolist() for name, values in metrics.items()}
    record = {"step": step, "checkpoint": workdir.newest(), "last_step": last_step, "metrics": steps}
    content = json.dumps(records.seal(record | {"versions": versions()}, records.SEAL), indent=1)
    write_atomically(workdir.path / "diverged.json", content)
    return RunError(
        f"training diverged, loss or parameters are not finite from step {step} on: lower "
        f"config.optimizer.learning_rate and choose another --workdir; the same command in {workdir.path} repeats it "
        f"from step {workdir.newest()}, diverged.json there holds its last metrics"
    )


def _record(workdir: Workdir, bar: tqdm, last_step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Log the means over the chunk that ends at `last_step`.

    Raises:
      RunError: if they are not finite.
    """
    means = {name: float(np.mean(values)) for name, values in metrics.items()}
    if not all(map(math.isfinite, means.values())):
        finite = np.all([np.isfinite(values) for values in metrics.values()], axis=0)
        raise _diverged(workdir, last_step - len(finite) + 1 + int(np.argmin(finite)), last_step, metrics)
    workdir.metrics(last_step, **{f"train/{name}": value for name, value in means.items()})
    bar.set_postfix({name: f"{value:.4f}" for name, value in means.items()}, refresh=False)
    bar.update(last_step - bar.n)


def train(
    state: Any,
    best: Any,
    *,
    workdir: Workdir,
    devices: Sequence[jax.Device],
    chunk: Callable[[], Callable[[Any], tuple[Any, Any]]],
    end_epoch: Callable[[int, Any, Any, tqdm], Any],
    length: int,
    total: int,
    steps_per_epoch: int,
    checkpoint_minutes: float,
    batch_size: int,
) -> tuple[Any, Any]:
    """Train from the run's last checkpoint, or from `state`, to step `total`.

    A signal (`stopping`) ends the loop after the running chunk, with the state saved. An epoch's checkpoint is saved
    before its validation: a run that is killed there resumes with the validation, from its recorded points.

    Args:
      state: everything that training changes, on the host, with the number of finished steps as `state.step`.
      best: the selection of `end_epoch`; saved beside the state.
      workdir: takes checkpoints and metrics.
      devices: where the state is replicated to.
      chunk: () -> the compiled program (state) -> (state, metrics) of `length` steps; called only if steps are left.
      end_epoch: (epoch, state, best, bar) -> best, called after each epoch's checkpoint. It may record points, under
        measures that start with `validation(step)`.
      length: steps of a program; divides `steps_per_epoch`.
      total, steps_per_epoch: numbers of steps.
      checkpoint_minutes: time between checkpoints within an epoch.
      batch_size: for the error if a program does not fit into the devices' memory.

    Returns:
      The last state and the selection, on the host.

    Raises:
      RunError: if loss or parameters are not finite, or files cannot be written.
      OutOfMemoryError: if a program does not fit into the devices' memory.
      stopping.Stop: after a signal.
    """
    saved = workdir.restore((state, best))
    if saved is not None:
        state, best = saved
        logging.warning("resuming from step %d", int(state.step))
    step = int(state.step)
    processes.check_same("checkpoints", str(step))
    epoch_open = saved is not None and workdir.epoch_open(step)
    workdir.open_metrics(step, epoch_open)
    if step == total and not epoch_open:
        return state, best
    if step < total:
        workdir.forget_points(keep=(validation(step),))  # a retrained network is measured again
    state, call = parallel.replicate(state, devices), None
    last_save, pending = time.monotonic(), None

    def validated(best: Any) -> Any:
        """Select; a signal ends this at once."""
        with stopping.raised():
            stopping.check()
            return end_epoch(step // steps_per_epoch - 1, state, best, bar)

    with (
        progress_bar(total=total, initial=step, unit="step", smoothing=0.1) as bar,
        stopping.deferred(),
    ):
        if epoch_open:
            best = validated(best)
        while step < total:
            bar.set_description(f"epoch {step // steps_per_epoch + 1}/{-(-total // steps_per_epoch)}", refresh=False)
            call = call or chunk()
            # The next chunk is dispatched before the metrics of the last are fetched, so the device does not wait.
            with memory.limited_by("config.train.batch_size", batch_size, devices[0], ", or more devices"):
                state, metrics = call(state)
                jax.block_until_ready(pending)  # running out of memory shows only when a program runs
            step += length
            if pending is not None:
                _record(workdir, bar, pending[0], parallel.first(pending[1]))
            pending = (step, metrics)
            epoch_ends = step % steps_per_epoch == 0
            due = time.monotonic() - last_save > 60 * checkpoint_minutes
            if processes.any_of(stopping.requested()):
                stopping.request()
            if epoch_ends or due or stopping.requested():
                # Check before validating and saving: the loss, and what the last update made of the parameters.
                metrics, pending = parallel.first(metrics), None
                _record(workdir, bar, step, metrics)
                if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parallel.first(state))):
                    raise _diverged(workdir, step, step, metrics)
                workdir.save(step, (parallel.first(state), best), epoch_open=epoch_ends)
                last_save = time.monotonic()
                stopping.check()
                if epoch_ends:
                    workdir.forget_points(keep=(validation(step),))  # those of the last epoch are in `best`
                    best = validated(best)
    return parallel.first(state), best
