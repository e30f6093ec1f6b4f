"""The host's loop over chunks of steps: progress bar, metrics, checkpoints, and the stop on NaN."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from gradalign_jax.workdir import RunError, Workdir


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


def run(
    state: Any,
    *,
    chunk: Callable[[Any], tuple[Any, Any]],
    fetch: Callable[[Any], Mapping[str, np.ndarray]],
    step: int,
    length: int,
    total: int,
    steps_per_epoch: int,
    workdir: Workdir,
    save: Callable[[int, Any], None],
    end_epoch: Callable[[int, Any, tqdm], None],
    checkpoint_minutes: float,
) -> Any:
    """Runs `chunk(state) -> (state, metrics)` from step `step` to `total`.

    The next chunk is on its way before the metrics of the last are fetched, so the device does not wait. After each
    epoch `end_epoch(epoch, state, bar)` is called and `save(step, state)`; within one, every `checkpoint_minutes`.
    """
    saved, pending = time.monotonic(), None
    with tqdm(total=total, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1) as bar:
        while step < total:
            epoch = step // steps_per_epoch
            bar.set_description(f"epoch {epoch + 1}/{-(-total // steps_per_epoch)}", refresh=False)
            state, metrics = chunk(state)
            step += length
            if pending is not None:
                _record(workdir, bar, pending[0], fetch(pending[1]))
            pending = (step, metrics)
            whole = step % steps_per_epoch == 0
            if whole or time.monotonic() - saved > 60 * checkpoint_minutes:
                # Nothing that diverged is validated or saved: neither a loss, nor what the last update made.
                _record(workdir, bar, step, fetch(metrics))
                pending = None
                if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(fetch(state))):
                    raise _diverged(workdir, step)
                if whole:
                    end_epoch(epoch, state, bar)
                save(step, state)
                saved = time.monotonic()
    return state
