"""Task `classifier`: train plainly, with the alignment penalty or with PGD; select an epoch; measure it on the test."""

import time
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from gradalign_jax import alignment, data, figures, loop, models, parallel, robustness, summary, training, weights
from gradalign_jax.attacks import pgd
from gradalign_jax.data import pipeline
from gradalign_jax.evaluation import Evaluation
from gradalign_jax.models import pretrained
from gradalign_jax.tasks import batches, estimates
from gradalign_jax.types import IMAGE_RANGE, Attack, Classifier
from gradalign_jax.workdir import Workdir

# Streams of randomness below the run's one seed.
_INIT, _ORDER, _STEP, _VALIDATE, _TEST, _VALIDATION_SET, _TEST_SET = range(7)


class Best(NamedTuple):
    """The selected epoch so far (as the authors select: highest validation ε50%, the later of equals)."""

    variables: Any
    epoch: np.ndarray
    value: np.ndarray


def create_classifier(config: ConfigDict, dataset: data.Dataset) -> Classifier:
    """The configured model; batch statistics, where there are any, are those of the whole batch over all devices."""
    options = {key: value for key, value in config.model.items() if key not in ("name", "pretrained")}
    if not options.get("frozen_norm", True):
        options["axis_name"] = parallel.AXIS
    return models.create(config.model.name, num_classes=dataset.num_classes, **options)


def create_optimizer(config: ConfigDict) -> optax.GradientTransformation:
    """Adam or SGD with momentum, at a constant rate, without decay."""
    if config.optimizer.name == "sgd":
        return optax.sgd(config.optimizer.learning_rate, config.optimizer.momentum)
    return training.adam(config.optimizer.learning_rate, config.optimizer.b1, config.optimizer.b2)


def attack_bounds(config: ConfigDict, dataset: data.Dataset) -> tuple[float, float]:
    """What attacked images are clamped to: [-1, 1], or with attack.clip="data" the training data's range if wider."""
    if config.attack.clip == "range" or "train" not in dataset.splits:
        return IMAGE_RANGE
    image = dataset.splits["train"].image
    if image.dtype == np.uint8:
        return IMAGE_RANGE
    return min(IMAGE_RANGE[0], float(image.min())), max(IMAGE_RANGE[1], float(image.max()))


class ClassifierRun:
    """One run's parts, put together from the config; `run` is the order of events."""

    def __init__(self, config: ConfigDict, workdir: Workdir):
        self.config, self.workdir, self.started = config, workdir, time.time()
        self.dataset = batches.load(config)
        self.steps_per_epoch = batches.steps_per_epoch(config, self.dataset)
        self.devices = parallel.devices(config.devices, config.train.batch_size)
        self.key = jax.random.key(config.seed)
        self.classifier = create_classifier(config, self.dataset)
        self.bounds = attack_bounds(config, self.dataset)
        self.delta_x = estimates.load(config.delta_x, self.dataset, "train") if config.method == "align" else None
        self.measuring = estimates.load(config.evaluate, self.dataset, "test", config.evaluate.images)
        estimates.check_apart(self.delta_x, self.measuring, config.evaluate.same_generator)
        self.notes = list(self.dataset.notes)

    def stream(self, number: int) -> jax.Array:
        """One of the run's independent streams of randomness."""
        return jax.random.fold_in(self.key, number)

    def split(self, name: str) -> data.Split:
        """A split on the host."""
        stream = {"validation": _VALIDATION_SET, "test": _TEST_SET}.get(name, 0)
        return batches.split(self.config, self.dataset, name, self.stream(stream))

    def attack(self, norm: str) -> Attack:
        """The configured PGD in one norm."""
        attack = self.config.attack
        return pgd.make(norm, steps=attack.steps, loss=attack.loss, bounds=self.bounds)

    def evaluation(self, split: str, images: int, key: jax.Array, norms: tuple[str, ...]) -> Evaluation:
        """Measurements on the first `images` of a split (0: all)."""
        part = jax.tree.map(lambda rows: rows[: images or None], self.split(split))
        attacks = {f"pgd_{norm}": self.attack(norm) for norm in norms}
        block, measuring = self.config.evaluate.block, self.measuring
        return Evaluation(
            self.classifier, part, on=self.devices, block=block, key=key, attacks=attacks, delta_x=measuring
        )

    # ---- training

    def fresh_state(self) -> training.TrainState:
        """The state of step 0, on the host."""
        state = training.create_state(self.classifier, create_optimizer(self.config), self.stream(_INIT))
        path = self.config.model.pretrained
        if path:
            state = state._replace(variables=pretrained.load(path, state.variables))
        elif self.config.model.get("frozen_norm", True) and self.config.model.name == "resnet":
            self.notes.append("trained from scratch: no ImageNet weights were given (config.model.pretrained)")
            logging.warning(self.notes[-1])
        return jax.device_get(state)

    def chunk(self, length: int):
        """The compiled training program, on all devices."""
        config, estimate = self.config, self.delta_x

        def step(state, batch, keys, settings):
            bound = estimate and partial(estimate.delta_x, settings["arrays"])
            method_step = training.make_step(
                self.classifier,
                create_optimizer(config),
                config.method,
                delta_x=bound,
                attack=self.attack("linf") if config.method == "pgd" else None,
                attack_dtype=jnp.dtype(config.attack.training_dtype),
                mean=parallel.mean,
            )
            return method_step(state, batch, keys, settings)

        source = batches.source(config, self.dataset, self.steps_per_epoch, self.stream(_ORDER))
        chunk = training.make_chunk(step, source, length, config.train.batch_size, parallel.mine)
        program = parallel.pmap(chunk, self.devices, in_axes=(0, 0, None, 0), donate_argnums=(0,))
        settings = {
            "baseline": {},
            "align": {"weight": np.float32(config.align.weight), "arrays": estimate and estimate.arrays},
            "pgd": {name: np.float32(config.attack[name]) for name in ("epsilon", "step_size")},
        }[config.method]
        images = self.dataset.splits["train"] if self.dataset.sample is None else np.zeros(0, np.float32)
        images, settings = parallel.replicate((images, settings), self.devices)
        return partial(self._call, program, images, self.stream(_STEP), settings)

    @staticmethod
    def _call(program, images, key, settings, state):
        return program(state, images, key, settings)

    def train(self) -> Best:
        """Trains from the last checkpoint, or from step 0, and returns the selected epoch."""
        config, total = self.config, self.config.train.epochs * self.steps_per_epoch
        state = self.fresh_state()
        best = Best(state.variables, np.int32(-1), np.float64(-1))
        saved = self.workdir.restore((state, best, np.float64(0)))
        if saved is not None:
            state, best, seconds = saved
            self.started -= float(seconds)
            logging.warning("going on from step %d", int(state.step))
        step = int(state.step)
        self.workdir.open_metrics(step)
        if step == total:
            return best
        self.workdir.forget_points()  # a retrained classifier is measured anew
        length = loop.chunk_length(self.steps_per_epoch, config.train.log_every)
        validation = self.evaluation("validation", config.validate.images, self.stream(_VALIDATE), ("linf",))

        def end_epoch(epoch: int, state: training.TrainState, bar: tqdm) -> None:
            nonlocal best
            if (epoch + 1) % config.validate.every_epochs and epoch + 1 < config.train.epochs:
                return
            best = self.validate(validation, epoch, state, best, bar)

        def save(step: int, state: training.TrainState) -> None:
            self.workdir.save(step, (parallel.first(state), best, np.float64(time.time() - self.started)))

        loop.run(
            parallel.replicate(state, self.devices),
            chunk=self.chunk(length),
            fetch=parallel.first,
            step=step,
            length=length,
            total=total,
            steps_per_epoch=self.steps_per_epoch,
            workdir=self.workdir,
            save=save,
            end_epoch=end_epoch,
            checkpoint_minutes=config.train.checkpoint_minutes,
        )
        return best

    def validate(self, validation: Evaluation, epoch: int, state: training.TrainState, best: Best, bar: tqdm) -> Best:
        """ε50% under PGD L∞ on the validation split, and the better of this epoch and the best so far."""

        def error_at(epsilon: float) -> float:
            bar.set_description(f"epoch {epoch + 1} validation, ε={epsilon:g}")
            return float(validation.errors(state.variables, "pgd_linf", epsilon, self.config.attack.step_size).mean())

        grid = (0.0, *self.config.validate.epsilons)
        guess = float(best.value) if best.value >= 0 else None
        value, curve = robustness.bracketed_epsilon_half(error_at, grid, guess)
        clean = curve[0.0] if 0.0 in curve else error_at(0.0)
        self.workdir.metrics(
            int(parallel.first(state.step)),
            **{"validation/error": clean, "validation/epsilon_half": float(value), "epoch": epoch},
        )
        if value >= best.value and epoch >= self.config.validate.first_epoch:
            return Best(parallel.first(state.variables), np.int32(epoch), np.float64(value))
        return best

    # ---- the test

    def test_grids(self) -> dict[str, tuple[float, tuple[float, ...]]]:
        """Step size and ε grid of each attack, clean first."""
        config = self.config
        return {
            "pgd_linf": (config.attack.step_size, (0.0, *config.evaluate.linf_epsilons)),
            "pgd_l2": (config.evaluate.l2_step_size, (0.0, *config.evaluate.l2_epsilons)),
        }

    def test(self, best: Best) -> dict[str, Any]:
        """Error curves, ε50% and alignments of the selected epoch; finished points survive a kill."""
        evaluation = self.evaluation("test", self.config.evaluate.images, self.stream(_TEST), ("linf", "l2"))
        variables = parallel.replicate(best.variables, self.devices)
        done = {(point["measure"], point.get("epsilon")): point["value"] for point in self.workdir.points()}
        grids = self.test_grids()
        total = (1 + sum(len(grid) for _, grid in grids.values())) * evaluation.calls
        curves = {}
        with tqdm(total=total, unit="block", desc="test", dynamic_ncols=True, smoothing=0.05) as bar:

            def point(measure: str, epsilon: float | None, value) -> Any:
                if (measure, epsilon) not in done:
                    done[measure, epsilon] = value()
                    self.workdir.point(measure=measure, epsilon=epsilon, value=done[measure, epsilon])
                else:
                    bar.update(evaluation.calls)
                return done[measure, epsilon]

            def error(attack: str, step_size: float, epsilon: float) -> float:
                bar.set_description(f"test {attack}, ε={epsilon:g}", refresh=False)
                return float(evaluation.errors(variables, attack, epsilon, step_size, bar.update).mean())

            for attack, (step_size, grid) in grids.items():
                errors = [point(attack, e, partial(error, attack, step_size, e)) for e in grid]
                curves[attack] = {"epsilons": list(grid), "errors": errors}

            def means() -> dict[str, float]:
                values = evaluation.alignments(variables, bar.update)
                return {name: float(np.mean(v, dtype=np.float64)) for name, v in values.items() if "alpha" in name}

            alignments = point("alignment", None, means)
        return {"curves": curves, **alignments}

    def run(self) -> dict[str, Any]:
        """Train, select, test; returns the content of result.json."""
        best = self.train()
        weights.write(self.workdir.path / "classifier.safetensors", best.variables, config=self.config.to_dict())
        measured = self.test(best)
        half = {name: robustness.epsilon_half(**curve) for name, curve in measured["curves"].items()}
        for name, value in half.items():
            measured["curves"][name] |= {"threshold": value.threshold, "censored": value.censored}
            if value.censored:
                self.notes.append(f"ε50% under {name} is censored: the strongest attack leaves under 51 % error")
        result = summary.result(
            self.config,
            accuracy=1 - measured["curves"]["pgd_linf"]["errors"][0],
            epsilon_half={**dict.fromkeys(("pgd_linf", "pgd_l2", "square_linf")), **half},
            measured=measured,
            best={"epoch": int(best.epoch), "validation_epsilon_half": float(best.value)},
            seconds=time.time() - self.started,
            devices=[device.device_kind for device in self.devices],
            notes=self.notes,
        )
        self.draw(best.variables, result)
        return result

    def draw(self, variables: Any, result: dict[str, Any]) -> None:
        """The pictures: error over ε, and ∇ℓ(x) of a few test images."""
        figures.draw_curves(self.workdir.path / "curves.png", result["curves"])
        split = self.split("test")
        classes = np.unique(split.label)
        each = max(1, 8 // len(classes))
        few = np.concatenate([np.flatnonzero(split.label == c)[:each] for c in classes])[:8]
        batch = pipeline.gather(data.Split(*(jnp.asarray(rows[few]) for rows in split)), jnp.arange(len(few)))

        @jax.jit
        def gradients(variables, image, label):
            return alignment.target_gradient(lambda x: self.classifier.apply(variables, x)[0], image, label)

        gradient, target = gradients(variables, batch.image, batch.label)
        delta_x = None
        if self.measuring is not None:
            delta_x = jax.jit(self.measuring.delta_x)(
                self.measuring.arrays, batch.image, batch.label, target, batch.index
            )
        figures.draw_gradients(self.workdir.path / "gradients.png", batch.image, gradient, delta_x)


def run(config: ConfigDict, workdir: Workdir) -> dict[str, Any]:
    """Trains and measures the configured classifier, or goes on with it; returns its result."""
    task = ClassifierRun(config, workdir)
    result = task.run()
    workdir.finish(result)
    return result


table = summary.table
