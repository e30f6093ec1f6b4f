"""Task `evaluate`: measure a finished classifier run by PGD, Square Attack and, on request, Carlini-Wagner."""

import json
import os
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, config_checks
from gradalign_jax.experiment.subject import load_subject, test
from gradalign_jax.storage import weights
from gradalign_jax.storage.result import classifier_result, table
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.types import Estimate


def finished(directory: str, config: ConfigDict) -> tuple[dict[str, Any], ConfigDict, dict[str, Any], dict | None]:
    """A run's weights, its config with the weights' digest, its result, and what describes the Δx that trained it.

    Raises:
      RunError: if the run is not finished, damaged, of another data set, or trained by the Δx that is to measure it.
    """
    variables, described = weights.read(Path(directory) / "classifier.safetensors")
    try:
        outcome = json.loads((Path(directory) / "result.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(
            f"{directory}/result.json is missing or damaged: let that classifier run finish, or correct "
            "config.classifier"
        ) from error
    run = ConfigDict(described["config"] | {"digest": described["digest"]})
    if run.data.name != config.data.name:
        raise RunError(
            f"config.classifier={directory} was trained on {run.data.name}, not on {config.data.name}: use "
            f"--config=configs/{run.data.name}.py:evaluate"
        )
    if run.method == "align":
        try:
            config_checks.check_measuring(run.delta_x, config.evaluate)
        except ValueError as error:
            raise RunError(str(error)) from error
    return variables, run, outcome, described.get("delta_x")


def run(config: ConfigDict, workdir: Workdir) -> dict[str, Any]:
    """Measures the run that config.classifier names, or goes on with it; returns its result."""
    variables, trained, before, trained_by = finished(config.classifier, config)
    value = workdir.remembered()
    if value("weights", None, 0, lambda: trained.digest) != trained.digest:
        raise RunError(
            f"{config.classifier} holds other weights than when this evaluation began: choose another --workdir"
        )
    subject = load_subject(config, trained, batch_size=0)
    if trained_by is not None:
        artifacts.check_apart(Estimate((), None, trained_by), subject.measuring, config.evaluate.same_generator)
    measured = test(subject, variables, workdir, by_class=True)
    notes = [*subject.dataset.notes, *(note for note in before["notes"] if note not in subject.dataset.notes)]
    result = classifier_result(
        config,
        trained,
        measured=measured,
        best=before["best"],
        seconds=workdir.seconds(),
        devices=[device.device_kind for device in subject.devices],
        notes=notes,
    )
    result |= {
        "evaluated": os.path.realpath(config.classifier),
        "evaluated_config": trained.to_dict(),
        "training_seconds": before["seconds"],
    }
    workdir.finish(result)
    return result


__all__ = ["finished", "run", "table"]
