"""The host's loop over chunks of steps: resume, progress bar, metrics, checkpoints, and the stop on NaN."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from gradalign_jax import memory, parallel
from gradalign_jax.errors import RunError
from gradalign_jax.storage.workdir import Workdir


def chunk_length(steps_per_epoch: int, log_every: int) -> int:
    """The largest divisor of an epoch that is at most `log_every`: one compiled program, whole epochs."""
    return next(n for n in range(min(log_every, steps_per_epoch), 0, -1) if steps_per_epoch % n == 0)


def _diverged(workdir: Workdir, step: int) -> RunError:
    return RunError(
        f"training diverged, loss or parameters are not finite from step {step} on: lower "
        f"config.optimizer.learning_rate and choose another --workdir; checkpoints in {workdir.checkpoints} are whole"
    )


def _record(workdir: Workdir, bar: tqdm, last_step: int, metrics: Mapping[str, np.ndarray]) -> None:
    """Logs the means over one chunk whose last step is `last_step`, and stops a run that diverged."""
    means = {name: float(np.mean(values)) for name, values in metrics.items()}
    if not all(map(math.isfinite, means.values())):
        finite = np.all([np.isfinite(values) for values in metrics.values()], axis=0)
        raise _diverged(workdir, last_step - len(finite) + 1 + int(np.argmin(finite)))
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
    """Trains from the run's last checkpoint, or from `state`, to step `total`.

    Args:
      state: all that training changes, on the host, its number of finished steps as `state.step`.
      best: whatever `end_epoch` selects; saved beside the state.
      workdir: takes checkpoints and metrics.
      devices: where the state is replicated to.
      chunk: () -> the compiled program (state) -> (state, metrics) of `length` steps; made only if steps are left.
      end_epoch: (epoch, state, best, bar) -> best, called after each epoch, before the checkpoint.
      length: steps of a program; divides `steps_per_epoch`.
      total, steps_per_epoch: numbers of steps.
      checkpoint_minutes: time between checkpoints within an epoch.
      batch_size: named where a program does not fit into the devices' memory.

    Returns the last state and the selection, on the host. Raises RunError if loss or parameters are not finite.
    """
    saved = workdir.restore((state, best))
    if saved is not None:
        state, best = saved
        logging.warning("going on from step %d", int(state.step))
    step = int(state.step)
    workdir.open_metrics(step)
    if step == total:
        return state, best
    workdir.forget_points()  # a retrained network is measured anew
    state, call = parallel.replicate(state, devices), chunk()
    last_save, pending = time.monotonic(), None
    with tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1) as bar:
        while step < total:
            epoch = step // steps_per_epoch
            bar.set_description(f"epoch {epoch + 1}/{-(-total // steps_per_epoch)}", refresh=False)
            # The next chunk is on its way before the metrics of the last are fetched: the device does not wait.
            with memory.limited_by("config.train.batch_size", batch_size, devices[0], ", or more devices"):
                state, metrics = call(state)
                jax.block_until_ready(pending)  # a lack of memory shows when a program runs
            step += length
            if pending is not None:
                _record(workdir, bar, pending[0], parallel.first(pending[1]))
            pending = (step, metrics)
            whole = step % steps_per_epoch == 0
            if whole or time.monotonic() - last_save > 60 * checkpoint_minutes:
                # Nothing that diverged is validated or saved: neither a loss, nor what the last update made.
                _record(workdir, bar, step, parallel.first(metrics))
                pending = None
                if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(parallel.first(state))):
                    raise _diverged(workdir, step)
                if whole:
                    best = end_epoch(epoch, state, best, bar)
                workdir.save(step, (parallel.first(state), best))
                last_save = time.monotonic()
    return parallel.first(state), best
