"""Task `evaluate`: measure a finished or imported classifier with PGD and, if configured, further attacks."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from gradalign_jax import paths
from gradalign_jax.errors import RunError
from gradalign_jax.experiment import artifacts, batches, config_checks, estimates
from gradalign_jax.experiment.subject import load_subject, test
from gradalign_jax.storage import result as results
from gradalign_jax.storage.workdir import Workdir


def run(config: ConfigDict, workdir: Workdir) -> dict[str, Any]:
    """Measure the classifier that config.classifier names, or resume; return the result.

    Raises:
      RunError: if that run is unfinished, damaged, of another data set, or trained with the Δx that is to measure it.
    """
    variables, trained, described = artifacts.load_classifier(config.classifier, config.data.name, "config.classifier")
    before = artifacts.load_history(config.classifier, trained)
    if trained.method == "align":
        try:
            config_checks.check_measuring(trained.delta_x, config.evaluate)
        except ValueError as error:
            raise RunError(str(error)) from error
    trained = ConfigDict(trained.to_dict() | {"digest": described["digest"]})
    value = workdir.remembered()
    if value("weights", None, 0, lambda: trained.digest) != trained.digest:
        raise RunError(
            f"{config.classifier} holds other weights than when this evaluation began: choose another --workdir"
        )
    subject = load_subject(config, trained, batch_size=0, some_classes=True, folder=workdir.path)
    artifacts.check_classes(config.classifier, described, subject.dataset)
    measuring = subject.measuring and subject.measuring.described
    estimates.check_apart(described.get("delta_x"), measuring, config.evaluate.same_generator)
    measured = test(subject, variables, workdir, by_class=True)
    notes = [*subject.dataset.notes, *(note for note in before["notes"] if note not in subject.dataset.notes)]
    result = results.classifier_result(
        config,
        trained,
        measured=measured | batches.described(subject.dataset),
        best=before["best"],
        seconds=workdir.seconds(),
        devices=[device.device_kind for device in subject.devices],
        notes=notes,
    )
    result |= {
        "evaluated": paths.real(config.classifier),
        "evaluated_config": trained.to_dict(),
        "training_seconds": before["seconds"],
    }
    workdir.finish(result)
    return result


def table(outcome: Mapping[str, Any]) -> str:
    """Format the measured numbers, and the accuracy at each ε under PGD L∞ and a suite's worst case, for a terminal."""
    curves, part = {"PGD L∞": outcome["curves"]["pgd_linf"]}, outcome.get("suite")
    if part:
        curves[f"{part['name']}, {part['norm']}"] = part["curves"][f"worst_{part['norm']}"]
    lines = [results.table(outcome)]
    for attack, curve in curves.items():
        points = [(e, 1 - error) for e, error in zip(curve["epsilons"], curve["errors"], strict=True) if e > 0]
        lines.append(f"robust accuracy, {attack}: " + ", ".join(f"{value:.4g} at ε={e:.4g}" for e, value in points))
    return "\n".join(lines)
