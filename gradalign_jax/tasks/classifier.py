"""Task `classifier`: train a classifier by one of three methods, select an epoch, test it."""

from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from gradalign_jax import paper, parallel, robustness, training
from gradalign_jax.evaluation import schedule
from gradalign_jax.evaluation.programs import Evaluation
from gradalign_jax.experiment import artifacts, batches, estimates
from gradalign_jax.experiment.subject import Stream, head, load_subject, test
from gradalign_jax.models import pretrained
from gradalign_jax.storage import weights
from gradalign_jax.storage.result import classifier_result, table
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.terminal import progress_bar
from gradalign_jax.training import loop


class Best(NamedTuple):
    """The best epoch so far, by the authors' rule: highest validation ε50%, the later of equals."""

    variables: Any
    epoch: np.ndarray
    value: np.ndarray


def create_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Create Adam or SGD with momentum, at a constant learning rate, without weight decay."""
    if config.optimizer.name == "sgd":
        return optax.sgd(config.optimizer.learning_rate, config.optimizer.momentum)
    return training.adam(config.optimizer.learning_rate, config.optimizer.b1, config.optimizer.b2)


class ClassifierRun:
    """A run's parts, built from the config; `run` gives the order of events.

    Raises:
      RunError: if a Δx cannot be used, or one generator's Δx would both train and measure.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir):
        self.config, self.workdir = config, workdir
        folder = workdir.path if workdir else None
        self.subject = load_subject(config, config, config.train.batch_size, folder=folder)
        self.dataset, self.devices = self.subject.dataset, self.subject.devices
        self.classifier, self.stream = self.subject.classifier, self.subject.stream
        self.steps_per_epoch = batches.steps_per_epoch(config, self.dataset)
        self.delta_x = (
            estimates.load_delta_x(config.delta_x, self.dataset, "train", folder=folder)
            if config.method == "align"
            else None
        )
        sources = [estimate and estimate.described for estimate in (self.delta_x, self.subject.measuring)]
        estimates.check_apart(*sources, config.evaluate.same_generator)
        self.notes = list(self.dataset.notes)

    @cached_property
    def validation(self) -> Evaluation:
        """The measurements on the validation split."""
        split = head(self.subject.split("validation"), self.config.validate.images)
        return self.subject.evaluation(split, Stream.VALIDATE, self.subject.attacks("linf"))

    def validation_error(self, variables: Any, epsilon: float, measure: str) -> float:
        """Return the error rate under PGD L∞ of size ε on the validation split; its parts are recorded."""
        evaluation, value = self.validation, self.workdir.remembered()

        def wrong(part: range) -> int:
            return int(evaluation.errors(variables, "pgd_linf", epsilon, self.config.attack.step_size, part).sum())

        parts = evaluation.blocks.parts(schedule.BLOCKS)
        name = f"{measure} {len(parts[0])} images"  # another device may have other parts
        return sum(value(name, epsilon, part.start, partial(wrong, part)) for part in parts) / evaluation.size

    # ---- training

    def fresh_state(self) -> training.TrainState:
        """Return the state of step 0, on the host."""
        create = partial(training.create_state, self.classifier, create_optimizer(self.config))
        state = loop.fresh(create, self.stream(Stream.INIT))
        path = self.config.model.pretrained
        if path:
            state = state._replace(variables=pretrained.load(path, state.variables))
        elif self.config.model.get("frozen_norm", True) and self.config.model.name == "resnet":
            self.notes.append("trained from scratch: no ImageNet weights were given (config.model.pretrained)")
            logging.warning(self.notes[-1])
        return jax.device_get(state)

    def chunk(self, length: int):
        """Build the training program of `length` steps, on all devices."""
        config = self.config
        step = training.make_step(
            self.classifier,
            create_optimizer(config),
            config.method,
            attack=self.subject.training_attack() if config.method == "pgd" else None,
            attack_precision=config.precision.attack,
            training_precision=config.precision.training,
            targets=config.align.targets,
            mean=parallel.mean,
        )
        source = batches.source(config, self.dataset, self.steps_per_epoch, self.stream(Stream.ORDER))
        chunk = training.make_chunk(step, source, length, config.train.batch_size, parallel.mine)
        program = parallel.pmap(chunk, self.devices, in_axes=(0, 0, None, 0), donate_argnums=(0,))
        images = self.dataset.splits["train"] if self.dataset.sample is None else np.zeros(0, np.float32)
        images, inputs = parallel.replicate((images, self.inputs()), self.devices)
        key = self.stream(Stream.STEP)
        return lambda state: program(state, images, key, inputs)

    def inputs(self) -> training.StepInputs:
        """Return what the configured method's step reads, on the host."""
        config = self.config
        if config.method == "align":
            return training.StepInputs(weight=np.float32(config.align.weight), delta_x=self.delta_x.delta_x)
        if config.method == "pgd":
            sizes = {name: np.float32(config.attack[name]) for name in ("epsilon", "step_size")}
            return training.StepInputs(**sizes)
        return training.StepInputs()

    def train(self) -> Best:
        """Train from the last checkpoint, or from step 0, and return the selected epoch."""
        config, state = self.config, self.fresh_state()
        length = loop.chunk_length(self.steps_per_epoch, config.train.log_every)

        def end_epoch(epoch: int, state: training.TrainState, best: Best, bar: tqdm) -> Best:
            if (epoch + 1) % config.validate.every_epochs and epoch + 1 < config.train.epochs:
                return best
            return self.validate(epoch, state, best, bar)

        _, best = loop.train(
            state,
            Best(state.variables, np.int32(-1), np.float64(-1)),
            workdir=self.workdir,
            devices=self.devices,
            chunk=partial(self.chunk, length),
            end_epoch=end_epoch,
            length=length,
            total=config.train.epochs * self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
            checkpoint_minutes=config.train.checkpoint_minutes,
            batch_size=config.train.batch_size,
        )
        return best

    def validate(self, epoch: int, state: training.TrainState, best: Best, bar: tqdm) -> Best:
        """Measure ε50% under PGD L∞ on the validation split; return the better of this epoch and the best so far.

        The search for ε50% starts at the best so far, in the first epoch at the paper's.
        """

        step = int(parallel.first(state.step))

        def error_at(epsilon: float) -> float:
            bar.set_description(f"epoch {epoch + 1} validation, ε={epsilon:g}")
            return self.validation_error(state.variables, epsilon, loop.validation(step))

        grid = (0.0, *self.config.validate.epsilons)
        dataset, method = self.config.data.name, self.config.method
        guess = float(best.value) if best.value >= 0 else paper.numbers(dataset, method).get("pgd_linf")
        value, curve = robustness.bracketed_epsilon_half(error_at, grid, guess)
        clean = curve[0.0] if 0.0 in curve else error_at(0.0)
        self.workdir.metrics(
            step,
            **{"validation/error": clean, "validation/epsilon_half": float(value), "epoch": epoch},
        )
        if value >= best.value and epoch >= self.config.validate.first_epoch:
            return Best(parallel.first(state.variables), np.int32(epoch), np.float64(value))
        return best

    def verify(self, best: Best) -> dict[str, Any]:
        """Measure the selected epoch on the whole validation grid, beside the bracketed ε50% that selected it."""
        variables = parallel.replicate(best.variables, self.devices)
        grid = (0.0, *self.config.validate.epsilons)
        bar = progress_bar(grid, unit="ε", desc="validation, whole grid")
        errors = [self.validation_error(variables, epsilon, "validation of the best epoch:") for epsilon in bar]
        return {
            "epoch": int(best.epoch),
            "validation_epsilon_half": float(best.value),
            "validation_epsilon_half_whole_grid": float(robustness.epsilon_half(grid, errors)),
            "validation_curve": {"epsilons": list(grid), "errors": errors},
        }

    def run(self) -> dict[str, Any]:
        """Train, select and test; return the content of result.json."""
        best = self.train()
        trained_by = self.delta_x and self.delta_x.described
        described = {"config": self.config.to_dict(), "delta_x": trained_by}
        weights.write(self.workdir.path / artifacts.CLASSIFIER, best.variables, **described)
        verified = self.verify(best)
        measured = test(self.subject, best.variables, self.workdir)
        selected, whole = verified["validation_epsilon_half"], verified["validation_epsilon_half_whole_grid"]
        if abs(selected - whole) > 1e-6 * abs(whole):
            measured["warnings"].append(
                f"the selected epoch's validation ε50% is {whole:.4g} on the whole grid but {selected:.4g} on the "
                "points that selected it: its error curve is not monotone"
            )
        return classifier_result(
            self.config,
            self.config,
            measured=measured | batches.described(self.dataset),
            best=verified,
            seconds=self.workdir.seconds(),
            devices=[device.device_kind for device in self.devices],
            notes=self.notes,
        )


def run(config: ConfigDict, workdir: Workdir) -> dict[str, Any]:
    """Train and measure the configured classifier, or resume; return its result."""
    result = ClassifierRun(config, workdir).run()
    workdir.finish(result)
    return result


__all__ = ["run", "table"]
