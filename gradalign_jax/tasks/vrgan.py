"""Task `vrgan`: train a generator of Δ̂x for two classes, select an epoch, measure its residuals (section 2.3.1)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from ml_collections import ConfigDict
from tqdm import tqdm

from gradalign_jax import alignment, data, memory, models, paper, parallel, training
from gradalign_jax.data import pipeline
from gradalign_jax.errors import RunError
from gradalign_jax.evaluation.blocks import Blocks
from gradalign_jax.experiment import artifacts, batches, config_checks
from gradalign_jax.experiment.subject import a_few, head
from gradalign_jax.models import pretrained
from gradalign_jax.storage import pictures, weights
from gradalign_jax.storage.result import provenance
from gradalign_jax.storage.workdir import Workdir
from gradalign_jax.training import loop, vrgan
from gradalign_jax.types import Classifier

# Streams of randomness below the run's one seed.
_INIT, _ORDER, _STEP, _VALIDATION_SET, _TEST_SET = range(5)


class Best(NamedTuple):
    """The best epoch so far, by the authors' rule: smallest mean training loss, the later of equals."""

    generator: Any
    critic: Any
    epoch: np.ndarray
    loss: np.ndarray


def create_critic(config: ConfigDict) -> Classifier:
    """Create the critic, the data set's classifier."""
    options = {key: value for key, value in config.model.items() if key not in ("name", "pretrained")}
    return models.create(config.model.name, num_classes=2, **options)


class VRGANRun:
    """A run's parts, built from the config; `run` gives the order of events.

    Raises:
      RunError: if the data set does not have two classes.
    """

    def __init__(self, config: ConfigDict, workdir: Workdir):
        self.config, self.workdir = config, workdir
        self.dataset = batches.load(config)
        if self.dataset.num_classes != 2:
            raise RunError(
                f"a VR-GAN moves images between two classes, {config.data.name} has {self.dataset.num_classes}: "
                "estimate its Δx with the tasks gan and project"
            )
        for section in ("model", "generator"):
            config_checks.check_fits(config, section, self.dataset.name, self.dataset.image_shape, 2)
        self.steps_per_epoch = batches.steps_per_epoch(config, self.dataset)
        self.devices = parallel.devices(config.devices, config.train.batch_size)
        self.key = jax.random.key(config.seed)
        self.generator = artifacts.create_residual_generator(config, parallel.AXIS)
        self.critic = create_critic(config)
        self.optimizer = training.adam(config.optimizer.learning_rate, config.optimizer.b1, config.optimizer.b2)
        self.notes = list(self.dataset.notes)

    def stream(self, number: int) -> jax.Array:
        """Return the key of one of the run's independent streams of randomness."""
        return jax.random.fold_in(self.key, number)

    # ---- training

    def fresh_state(self) -> vrgan.VRGANState:
        """Return the state of step 0, on the host."""
        create = partial(vrgan.create_state, self.generator, self.critic, self.optimizer)
        state = loop.fresh(create, self.stream(_INIT))
        path = self.config.model.pretrained
        if path:
            state = state._replace(critic=pretrained.load(path, state.critic))
        elif self.config.model.name == "resnet":
            self.notes.append("critic trained from scratch: no ImageNet weights were given (config.model.pretrained)")
            logging.warning(self.notes[-1])
        return jax.device_get(state)

    def chunk(self, length: int):
        """Build the training program of `length` steps, on all devices."""
        config, steps = self.config, self.steps_per_epoch
        step = vrgan.make_step(
            self.generator,
            self.critic,
            self.optimizer,
            vrgan.Weights(**config.vrgan),
            parallel.mean,
            config.precision.training,
        )

        def counted(state: vrgan.VRGANState, batch, keys, settings):
            first = state.step % steps == 0
            return step(state._replace(loss=jnp.where(first, 0, state.loss)), batch, keys, settings)

        source = batches.source(config, self.dataset, steps, self.stream(_ORDER))
        chunk = training.make_chunk(counted, source, length, config.train.batch_size, parallel.mine)
        program = parallel.pmap(chunk, self.devices, in_axes=(0, 0, None, None), donate_argnums=(0,))
        images = self.dataset.splits["train"] if self.dataset.sample is None else np.zeros(0, np.float32)
        images, key = parallel.replicate(images, self.devices), self.stream(_STEP)
        return lambda state: program(state, images, key, {})

    def train(self) -> Best:
        """Train from the last checkpoint, or from step 0, and return the selected epoch."""
        config, state = self.config, self.fresh_state()
        length = loop.chunk_length(self.steps_per_epoch, config.train.log_every)
        measure = self.measurement("validation", _VALIDATION_SET)

        def end_epoch(epoch: int, state: vrgan.VRGANState, best: Best, bar: tqdm) -> Best:
            loss = float(parallel.first(state.loss)) / self.steps_per_epoch
            last = epoch + 1 == config.train.epochs
            if last or (epoch + 1) % config.validate.every_epochs == 0:
                step, value = int(parallel.first(state.step)), self.workdir.remembered()

                def means() -> dict[str, float]:
                    measured = measure(state.generator, state.critic)
                    return {f"validation/{name}": float(values.mean()) for name, values in measured.items()}

                measured = value(loop.validation(step), None, 0, means)
                self.workdir.metrics(step, epoch=epoch, **{"epoch/loss": loss}, **measured)
            if loss > best.loss:
                return best
            return Best(*parallel.first((state.generator, state.critic)), np.int32(epoch), np.float64(loss))

        _, best = loop.train(
            state,
            Best(state.generator, state.critic, np.int32(-1), np.float64(np.inf)),
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

    # ---- measuring

    def split(self, name: str, stream: int) -> data.Split:
        """Return the first `validate.images` or `evaluate.images` of a split, on the host."""
        images = self.config[{"validation": "validate", "test": "evaluate"}[name]].images
        return head(batches.split(self.config, self.dataset, name, self.stream(stream)), images)

    def measurement(self, name: str, stream: int):
        """Build measure(generator variables, critic variables) -> arrays `[N]` of a split; both are replicated."""
        split, exact = self.split(name, stream), self.dataset.delta_x
        block = self.config.evaluate.block or memory.block("evaluate", self.dataset.image_shape, self.devices)
        blocks = Blocks(split, on=self.devices, block=block)

        def measure(variables, batch):
            generator, critic = variables
            image, label, index = batch
            residual = self.generator.apply(generator, image, 1 - label, label)[0]
            norm = jax.vmap(jnp.linalg.norm)
            measured = {
                "norm_x": norm(image),
                "norm_delta": norm(residual),
                "norm_generated": norm(image + residual),
                "moved": self.critic.apply(critic, image + residual)[0].argmax(-1) != label,
            }
            if exact is not None:
                vector = exact(image, label, 1 - label, index)
                measured["norm_other"] = norm(image + vector)
                measured["similarity"] = alignment.cosine_similarity(vector, residual)
            return measured

        program = blocks.map(measure)
        return lambda generator, critic: program((generator, critic))

    def test(self, best: Best) -> dict[str, Any]:
        """Measure norms by class (Table 1), sim(Δx, Δ̂x) if Δx is exact, and how often the critic's class changes."""
        generator, critic = parallel.replicate((best.generator, best.critic), self.devices)
        measured = self.measurement("test", _TEST_SET)(generator, critic)
        label = self.split("test", _TEST_SET).label
        names = [name for name in measured if name.startswith("norm_")]
        by_class = {
            name.removeprefix("norm_"): {str(c): float(measured[name][label == c].mean()) for c in np.unique(label)}
            for name in names
        }
        similarity = measured.get("similarity")
        exact = similarity is not None
        return {
            "similarity": float(similarity.mean()) if exact else None,
            "similarity_sd": float(similarity.std()) if exact else None,
            "similarity_by_class": {str(c): float(similarity[label == c].mean()) for c in np.unique(label)}
            if exact
            else None,
            "norms": by_class,
            "moved": float(measured["moved"].mean()),
            "moved_by_destination": {str(1 - c): float(measured["moved"][label == c].mean()) for c in np.unique(label)},
        }

    def draw(self, best: Best) -> None:
        """Draw x, Δ̂x, x̂′ and, if there is an exact one, Δx, for a few test images of each class."""
        split = self.split("test", _TEST_SET)
        few = a_few(split, 5)
        image, label, index = pipeline.gather(
            data.Split(*(jnp.asarray(rows[few]) for rows in split)), jnp.arange(len(few))
        )
        residual = jax.jit(self.generator.apply)(best.generator, image, 1 - label, label)[0]
        vectors = {"Δ̂x": residual}
        if self.dataset.delta_x is not None:
            vectors["Δx"] = self.dataset.delta_x(image, label, 1 - label, index)
        order = ["x", *vectors, "x̂′"]
        pictures.draw_rows(self.workdir.path / "residuals.png", {"x": image, "x̂′": image + residual}, vectors, order)
        arrays = {"image": image, "label": label, "estimate": residual}
        arrays |= {"delta_x": vectors["Δx"]} if "Δx" in vectors else {}
        pictures.write_arrays(self.workdir.path / "pictures.npz", **arrays)  # for the report, which runs without JAX

    def run(self) -> dict[str, Any]:
        """Train, select, save the generator and measure it; return the content of result.json."""
        best = self.train()
        described = {"config": self.config.to_dict(), "epoch": int(best.epoch)}
        weights.write(self.workdir.path / artifacts.GENERATOR, best.generator, **described)
        measured = self.test(best)
        with pictures.optional():
            self.draw(best)
        return {
            "dataset": self.config.data.name,
            "task": "vrgan",
            "seed": self.config.seed,
            **measured,
            "best": {"epoch": int(best.epoch), "loss": float(best.loss)},
            **batches.described(self.dataset),
            **provenance(
                self.config,
                seconds=self.workdir.seconds(),
                devices=[device.device_kind for device in self.devices],
                notes=self.notes,
            ),
        }


def table(outcome: dict[str, Any]) -> str:
    """Format norms by class and similarity beside the paper's (Table 1, section 3.2), for a terminal."""
    names = {"x": "|x|", "delta": "|Δ̂x|", "generated": "|x̂′|", "other": "|x′|"}
    norms = {shown: outcome["norms"][name] for name, shown in names.items() if name in outcome["norms"]}
    lines = [f"{outcome['dataset']}, vrgan, seed {outcome['seed']}", "class" + "".join(f"{n:>10}" for n in norms)]
    for label in outcome["norms"]["x"]:
        lines.append(f"{label:5}" + "".join(f"{values[label]:10.4g}" for values in norms.values()))
    if outcome["similarity"] is not None:
        # The paper's number for Squares32 is that of a conditional GAN's projections.
        printed = paper.SIMILARITY.get(outcome["dataset"]) if outcome["dataset"] != "squares32" else None
        lines.append(
            f"sim(Δx, Δ̂x)  here {outcome['similarity']:.3f} ± {outcome['similarity_sd']:.3f} (over images)"
            + (f"   paper {printed[0]:.3f} ± {printed[1]:.3f}" if printed else "")
        )
    lines.append(f"x̂′ that the critic calls the other class: {outcome['moved']:.1%}")
    return "\n".join(lines + [f"note: {note}" for note in outcome["notes"]])


def run(config: ConfigDict, workdir: Workdir) -> dict[str, Any]:
    """Train and measure the configured generator, or resume; return its result."""
    result = VRGANRun(config, workdir).run()
    workdir.finish(result)
    return result
