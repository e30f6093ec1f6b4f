"""How far the input gradient of a classifier points along Δx (Eqs. 3-9 and 18 of the paper).

Every function is pure and works on batches; a classifier is a function `logits_fn(image [B, ...]) -> logits [B, K]`.
Input gradients are those of sums over the batch, so each image has its own as long as `logits_fn` treats images
independently (evaluation mode). Up to 16 classes the gradients of all logits, the Jacobian `[B, K, ...]`, are held at
once; with more they are computed, used and dropped in chunks of classes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradalign_jax.ops import platform
from gradalign_jax.types import Array, DeltaX, LogitsFn

# Up to this many classes the Jacobian is held whole. On a CPU its backward passes are unrolled, which measured
# fastest there; vmap was slowest.
_WHOLE = 16
_THEORY = ("condition", "norm_delta_x")
# Vectors whose largest entry is below this count as zero: 1 / tiny² must stay finite in float32 for second derivatives.
_TINY = 1e-18


def _unit(vector: Array) -> Array:
    """Return the rows of `[B, n]` at length 1; a zero row stays zero, with zero derivatives of every order."""
    # The direction of v does not depend on its scale, so the scale is a constant to every derivative. Dividing by
    # it keeps v² away from underflow: float32 cannot hold the square of 1e-20.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(vector), axis=-1, keepdims=True))
    nonzero = ~(scale <= _TINY)  # true for NaN, which must not be hidden
    scaled = jnp.where(nonzero, vector / jnp.where(nonzero, scale, 1), 0)
    squared = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    return scaled * jax.lax.rsqrt(jnp.where(nonzero, squared, 1))


def cosine_similarity(a: Array, b: Array) -> Array:
    """Return sim(a, b) = <a, b> / (|a| |b|) `[B]` of each pair of rows of `[B, ...]` (Theorem 1).

    Where a vector is exactly zero the similarity and its first and second derivatives are 0, never NaN.
    """
    rows = a.shape[0]
    return jnp.sum(_unit(a.reshape(rows, -1)) * _unit(b.reshape(rows, -1)), axis=-1)


PullBack = Callable[[Array], tuple[Array, ...]]  # cotangent of the logits [B, K] -> (gradient of the image [B, ...],)


def _gradient(pull_back: PullBack, logits: Array, classes: Array) -> Array:
    """Return the gradient `[B, ...]` of one logit per image; `classes` is an int, or `[B]`."""
    return pull_back(jnp.broadcast_to(jax.nn.one_hot(classes, logits.shape[-1], dtype=logits.dtype), logits.shape))[0]


def _chunk_size(classes: int) -> int:
    """Return the number of classes whose gradients are held at a time."""
    if classes <= _WHOLE:
        return classes
    return 1 if platform.is_cpu() else -(-classes // -(-classes // _WHOLE))  # chunks of nearly equal size


def _pull_back_chunk(pull_back: PullBack, logits: Array, first: int | Array, count: int) -> Array:
    """Return the gradients `[B, count, ...]` of the logits first .. first + count - 1."""

    def row(k):
        return _gradient(pull_back, logits, k)

    if platform.is_cpu():
        return jnp.stack([row(first + k) for k in range(count)], axis=1)
    return jax.vmap(row, out_axes=1)(first + jnp.arange(count))


def _over_chunks(of_chunk: Callable[[int | Array], Any], classes: int) -> Any:
    """Return `of_chunk(first) -> tree of [B, count, ...]` of all chunks, concatenated to a tree of `[B, K, ...]`.

    The last chunk overlaps the one before where the chunk size does not divide K.
    """
    size = _chunk_size(classes)
    if size == classes:
        return of_chunk(0)

    def fill(i, whole):
        first = jnp.minimum(i * size, classes - size)
        return jax.tree.map(
            lambda rows, some: jax.lax.dynamic_update_slice_in_dim(rows, some, first, axis=1), whole, of_chunk(first)
        )

    shapes = jax.eval_shape(of_chunk, 0)
    empty = jax.tree.map(lambda leaf: jnp.zeros((leaf.shape[0], classes, *leaf.shape[2:]), leaf.dtype), shapes)
    return jax.lax.fori_loop(0, -(-classes // size), fill, empty)


class _Gradients(NamedTuple):
    """The gradients of all logits, held whole or computed when they are needed.

    of(classes `[B]`) -> the gradient `[B, ...]` of one logit per image.
    over_classes(f) -> f(first, gradients `[B, count, ...]`) of each chunk of classes, a tree of `[B, count]`,
      concatenated to `[B, K]`.
    """

    of: Callable[[Array], Array]
    over_classes: Callable[[Callable[[int | Array, Array], Any]], Any]


def _held(jacobian: Array) -> _Gradients:
    """Return the gradients in a Jacobian `[B, K, ...]` that is already computed."""
    rows, classes = jnp.arange(jacobian.shape[0]), jacobian.shape[1]

    def over_classes(f):
        def of_chunk(first):
            size = _chunk_size(classes)
            some = jacobian if size == classes else jax.lax.dynamic_slice_in_dim(jacobian, first, size, axis=1)
            return f(first, some)

        return _over_chunks(of_chunk, classes)

    return _Gradients(lambda classes: jacobian[rows, classes], over_classes)


def _gradients(pull_back: PullBack, logits: Array) -> _Gradients:
    """Return the gradients that `pull_back` computes: K backward passes, and 1 for each call of `of` where K > 16."""
    classes = logits.shape[-1]
    if classes <= _WHOLE:
        return _held(_pull_back_chunk(pull_back, logits, 0, classes))

    def over_classes(f):
        size = _chunk_size(classes)
        return _over_chunks(lambda first: f(first, _pull_back_chunk(pull_back, logits, first, size)), classes)

    return _Gradients(lambda classes: _gradient(pull_back, logits, classes), over_classes)


def input_jacobian(logits_fn: LogitsFn, image: Array) -> tuple[Array, Array]:
    """Return logits `[B, K]` and their input gradients `[B, K, ...]`, from one forward and K backward passes."""
    logits, pull_back = jax.vjp(logits_fn, image)
    size = _chunk_size(logits.shape[-1])
    return logits, _over_chunks(lambda first: _pull_back_chunk(pull_back, logits, first, size), logits.shape[-1])


def _distance(logits: Array, reference: Array, gradient: Array, first: int | Array, gradients: Array) -> Array:
    """Return the signed, linearized distances `[B, count]` of `closest_class` for a chunk of classes from `first` on.

    Args:
      logits: `[B, K]`.
      reference: int `[B]`.
      gradient: `[B, ...]`, of the reference's logit.
      first: the first class of the chunk.
      gradients: `[B, count, ...]`, of the chunk's logits.
    """
    batch, count = gradients.shape[:2]
    difference = gradient.reshape(batch, -1)[:, None] - gradients.reshape(batch, count, -1)
    # As in `_unit`: the scale keeps the squares of very small gradients from vanishing.
    scale = jnp.max(jnp.abs(difference), axis=-1, keepdims=True)
    safe = jnp.where(scale > 0, scale, 1)
    squared = jnp.sum((difference / safe) ** 2, axis=-1)
    nonzero = ~(scale[..., 0] <= 0)  # true for NaN; at zero the root has no derivative
    norm = jnp.where(nonzero, jnp.sqrt(jnp.where(nonzero, squared, 1)) * scale[..., 0], 0)
    some = logits if count == logits.shape[-1] else jax.lax.dynamic_slice_in_dim(logits, first, count, axis=1)
    gap = logits[jnp.arange(batch), reference][:, None] - some
    distance = jnp.where(norm == 0, jnp.inf, gap / jnp.where(norm == 0, 1, norm))
    return jnp.where(first + jnp.arange(count)[None] == reference[:, None], jnp.inf, distance)


def _closest(distance: Array, reference: Array) -> Array:
    """Return the class of the smallest distance `[B]` int32, never the reference."""
    is_reference = jnp.arange(distance.shape[1])[None] == reference[:, None]
    # Unreachable classes still come before the reference itself.
    order = jnp.where(is_reference, jnp.inf, jnp.minimum(distance, jnp.finfo(distance.dtype).max))
    return jnp.argmin(order, axis=-1).astype(jnp.int32)


def _distances(gradients: _Gradients, logits: Array, *references: tuple[Array, Array]) -> tuple[Array, ...]:
    """Return the distances `[B, K]` from each reference (class `[B]`, its gradient), in one pass over the classes."""

    def of_chunk(first, some):
        return tuple(_distance(logits, *reference, first, some) for reference in references)

    return gradients.over_classes(of_chunk)


def closest_class(logits: Array, jacobian: Array, reference: Array) -> tuple[Array, Array]:
    """Return the class whose linearized decision boundary with `reference` is closest (Eqs. 4-5), and all distances.

    distance_k = (logit_r - logit_k) / |∇logit_r - ∇logit_k|₂, signed: negative where class k already wins against
    r. With r = y the minimum is c̃(x), with r = m(x) = argmax it is c*(x). The paper writes absolute values; the
    authors' code and this function keep the sign, which differs on misclassified images only.

    Args:
      logits: `[B, K]`.
      jacobian: `[B, K, ...]`, as `input_jacobian` returns it.
      reference: int `[B]`.

    Returns:
      target `[B]` int32, never the reference; distance `[B, K]` in L2 units of the image, +inf at the reference
      class and at classes whose gradient equals the reference's (no linear step reaches those).
    """
    gradients = _held(jacobian)
    (distance,) = _distances(gradients, logits, (reference, gradients.of(reference)))
    return _closest(distance, reference), distance


def measure(
    logits_fn: LogitsFn,
    delta_x: DeltaX | None,
    image: Array,
    label: Array,
    index: Array | None = None,
) -> dict[str, Array]:
    """Return every alignment of the paper, image by image.

    It takes one forward and K backward passes, and 4 more where K > 16.

    Args:
      logits_fn: image `[B, ...]` -> logits `[B, K]`, each image on its own (evaluation mode).
      delta_x: (image, label, target, index) -> `[B, ...]`, a vector to class `target`; None leaves
        `alpha_delta_x` and `norm_delta_x` out.
      image: `[B, ...]` in [-1, 1].
      label: int `[B]`, the ground truth y.
      index: int `[B]`, each image's place in its data set, passed on to `delta_x`.

    Returns:
      `[B]` arrays: `target` (c̃, Eq. 5), `distance` (signed, linearized, to c̃; Lemma 1), `alpha_delta_x`
      (cos(Δx, ∇ℓ) with ℓ = logit_c̃ - logit_y; Eqs. 6 and 8), `alpha_x` (|cos(x, ∇logit_m)|, Eq. 18) and the
      other gradients of Table S2: `alpha_x_label` (Ψ_y), `alpha_x_target_label` (Ψ_c̃ - Ψ_y) and
      `alpha_x_closest_predicted` (Ψ_c* - Ψ_m).
    """
    measured = measure_with_theory(logits_fn, delta_x, image, label, index)
    return {name: value for name, value in measured.items() if name not in _THEORY}


def measure_with_theory(
    logits_fn: LogitsFn, delta_x: DeltaX | None, image: Array, label: Array, index: Array | None = None
) -> dict[str, Array]:
    """Return `measure` and the quantities of Theorems 1 and 2, `[B]` each; arguments as in `measure`.

    Returns:
      All of `measure`; `condition`, whether {c*, m} = {y, c̃}, which Theorem 1 assumes; with a Δx its L2 norm,
      `norm_delta_x`.
    """
    logits, pull_back = jax.vjp(logits_fn, image)
    gradients = _gradients(pull_back, logits)
    predicted = jnp.argmax(logits, axis=-1)
    of_label, of_predicted = gradients.of(label), gradients.of(predicted)
    distance, from_predicted = _distances(gradients, logits, (label, of_label), (predicted, of_predicted))
    target, closest = _closest(distance, label), _closest(from_predicted, predicted)
    towards_target = gradients.of(target) - of_label
    towards_closest = gradients.of(closest) - of_predicted
    result = {
        "target": target,
        "distance": distance[jnp.arange(image.shape[0]), target],
        "alpha_x": jnp.abs(cosine_similarity(image, of_predicted)),
        "alpha_x_label": jnp.abs(cosine_similarity(image, of_label)),
        "alpha_x_target_label": jnp.abs(cosine_similarity(image, towards_target)),
        "alpha_x_closest_predicted": jnp.abs(cosine_similarity(image, towards_closest)),
        "condition": ((predicted == label) & (closest == target)) | ((predicted == target) & (closest == label)),
    }
    if delta_x is not None:
        vector = delta_x(image, label, target, index)
        result["alpha_delta_x"] = cosine_similarity(vector, towards_target)
        result["norm_delta_x"] = jnp.linalg.norm(vector.reshape(len(image), -1), axis=-1)
    return result


def by_class(
    logits_fn: LogitsFn, delta_x: DeltaX | None, image: Array, label: Array, index: Array | None = None
) -> dict[str, Array]:
    """Return the linear approximation of Lemma 1 and the alignment for every class; arguments as in `measure`.

    Returns:
      `[B, K]` arrays: `distance` (signed, linearized, to each class's boundary with y; +inf at y) and, with a Δx,
      `alignment` (cos(Δx to class k, ∇(logit_k - logit_y)); NaN at y).
    """
    logits, pull_back = jax.vjp(logits_fn, image)
    gradients = _gradients(pull_back, logits)
    of_label = gradients.of(label)

    def of_chunk(first, some):
        result = {"distance": _distance(logits, label, of_label, first, some)}
        if delta_x is not None:

            def towards(k):
                target = jnp.full_like(label, first + k)
                cosine = cosine_similarity(delta_x(image, label, target, index), some[:, k] - of_label)
                return jnp.where(label == first + k, jnp.nan, cosine)

            result["alignment"] = jax.lax.map(towards, jnp.arange(some.shape[1])).T
        return result

    return gradients.over_classes(of_chunk)


def target_gradient(logits_fn: LogitsFn, image: Array, label: Array) -> tuple[Array, Array]:
    """Return ∇ℓ(x) `[B, ...]` with ℓ = logit_c̃ - logit_y (Eq. 6), which should point along Δx, and c̃ `[B]`."""
    logits, pull_back = jax.vjp(logits_fn, image)
    gradients = _gradients(pull_back, logits)
    of_label = gradients.of(label)
    (distance,) = _distances(gradients, logits, (label, of_label))
    target = _closest(distance, label)
    return gradients.of(target) - of_label, target


def aligned_forward(
    logits_fn: Callable[[Array], tuple[Array, Any]],
    delta_x: DeltaX,
    image: Array,
    label: Array,
    index: Array | None = None,
) -> tuple[Array, Array, Any]:
    """Run one forward pass with the alignment that Eq. 9 rewards, differentiable in the parameters.

    The gradient ∇ℓ(x) is of the logits, not of the loss: the direction is the same, and it does not vanish for
    confident models. The choice of c̃ and the vector Δx are constants to the derivative. With two classes c̃ is
    the other one and costs nothing; with more it costs K backward passes, and 1 more where K > 16.

    Args:
      logits_fn: image -> (logits `[B, K]`, auxiliary output), in training mode; with batch statistics an
        image's gradient is of the sum over the batch, cross terms included.
      delta_x, image, label, index: as in `measure`.

    Returns:
      logits `[B, K]`, cosine `[B]` = sim(Δx, ∇ℓ(x)), and the auxiliary output of `logits_fn`.
    """
    logits, pull_back, auxiliary = jax.vjp(logits_fn, image, has_aux=True)
    classes = logits.shape[-1]
    if classes == 2:
        target = 1 - label
    else:
        values = jax.lax.stop_gradient(logits)
        gradients = _gradients(lambda cotangent: jax.lax.stop_gradient(pull_back(cotangent)), values)
        (distance,) = _distances(gradients, values, (label, gradients.of(label)))
        target = _closest(distance, label)
    direction = jax.nn.one_hot(target, classes) - jax.nn.one_hot(label, classes)
    (gradient,) = pull_back(direction.astype(logits.dtype))
    vector = jax.lax.stop_gradient(delta_x(image, label, target, index))
    return logits, cosine_similarity(vector, gradient), auxiliary
