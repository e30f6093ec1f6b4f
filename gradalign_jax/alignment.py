"""How far the input gradient of a classifier points along Δx (Eqs. 3-9 and 18 of the paper).

Every function is pure, works on batches, and takes the classifier as `logits_fn(image [B, ...]) -> logits [B, K]`.
Gradients with respect to the input are taken of sums over the batch, so each image gets its own gradient as long
as `logits_fn` treats images independently (evaluation mode).
"""

import jax
import jax.numpy as jnp

from gradalign_jax.ops import platform
from gradalign_jax.types import Array, DeltaX, LogitsFn

# Up to this many classes a CPU runs the backward passes unrolled: it measured fastest there, vmap slowest.
_UNROLL_CLASSES = 16
# Vectors whose largest entry is below this count as zero: 1 / tiny² must stay finite in float32 for second derivatives.
_TINY = 1e-18


def _unit(vector: Array) -> Array:
    """Normalises each row of `[B, n]` to length 1; a zero row stays zero, with zero derivatives of every order."""
    # The direction of v does not depend on its scale, so the scale is a constant to every derivative. Dividing by
    # it keeps v² away from underflow: float32 cannot hold the square of 1e-20.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(vector), axis=-1, keepdims=True))
    nonzero = ~(scale <= _TINY)  # NaN is not zero: it must show
    scaled = jnp.where(nonzero, vector / jnp.where(nonzero, scale, 1), 0)
    squared = jnp.sum(scaled * scaled, axis=-1, keepdims=True)
    return scaled * jax.lax.rsqrt(jnp.where(nonzero, squared, 1))


def cosine_similarity(a: Array, b: Array) -> Array:
    """sim(a, b) = <a, b> / (|a| |b|) for each pair of rows: `[B, ...]`, `[B, ...]` -> `[B]` (Theorem 1).

    Where a vector is exactly zero the similarity and its first and second derivatives are 0, never NaN.
    """
    rows = a.shape[0]
    return jnp.sum(_unit(a.reshape(rows, -1)) * _unit(b.reshape(rows, -1)), axis=-1)


def _pull_back_classes(pull_back, logits: Array) -> Array:
    """The gradients of all K logits, `[B, K, ...]`, by K pull-backs through one linearisation."""
    classes = logits.shape[-1]

    def row(k):
        return pull_back(jnp.broadcast_to(jax.nn.one_hot(k, classes, dtype=logits.dtype), logits.shape))[0]

    if not platform.is_cpu():
        return jax.vmap(row, out_axes=1)(jnp.arange(classes))
    if classes <= _UNROLL_CLASSES:
        return jnp.stack([row(k) for k in range(classes)], axis=1)
    return jnp.moveaxis(jax.lax.map(row, jnp.arange(classes)), 0, 1)


def input_jacobian(logits_fn: LogitsFn, image: Array) -> tuple[Array, Array]:
    """Logits `[B, K]` and their gradients with respect to the input, `[B, K, ...]`: one forward, K backward passes."""
    logits, pull_back = jax.vjp(logits_fn, image)
    return logits, _pull_back_classes(pull_back, logits)


def closest_class(logits: Array, jacobian: Array, reference: Array) -> tuple[Array, Array]:
    """The class whose linearised decision boundary with `reference` is closest (Eqs. 4-5).

    distance_k = (logit_r - logit_k) / |∇logit_r - ∇logit_k|₂, signed: negative where class k already wins against
    r. With r = y the minimum is c̃(x), with r = m(x) = argmax it is c*(x). The paper writes absolute values; the
    authors' code and this function keep the sign, which differs on misclassified images only.

    Args:
      logits: `[B, K]`.
      jacobian: `[B, K, ...]`, as `input_jacobian` gives it.
      reference: int `[B]`.

    Returns:
      target `[B]` int32, never the reference; distance `[B, K]` in L2 units of the image, +inf at the reference
      class and at classes whose gradient equals the reference's (no linear step reaches those).
    """
    batch, classes = logits.shape
    rows = jnp.arange(batch)
    flat = jacobian.reshape(batch, classes, -1)
    difference = flat[rows, reference][:, None] - flat
    # As in `_unit`: the scale keeps the squares of very small gradients from vanishing.
    scale = jnp.max(jnp.abs(difference), axis=-1, keepdims=True)
    safe = jnp.where(scale > 0, scale, 1)
    norm = jnp.sqrt(jnp.sum((difference / safe) ** 2, axis=-1)) * scale[..., 0]
    gap = logits[rows, reference][:, None] - logits
    distance = jnp.where(norm == 0, jnp.inf, gap / jnp.where(norm == 0, 1, norm))
    is_reference = jnp.arange(classes)[None] == reference[:, None]
    distance = jnp.where(is_reference, jnp.inf, distance)
    # Unreachable classes still come before the reference itself.
    order = jnp.where(is_reference, jnp.inf, jnp.minimum(distance, jnp.finfo(distance.dtype).max))
    return jnp.argmin(order, axis=-1).astype(jnp.int32), distance


def measure(
    logits_fn: LogitsFn,
    delta_x: DeltaX | None,
    image: Array,
    label: Array,
    index: Array | None = None,
) -> dict[str, Array]:
    """Every alignment of the paper, image by image, from one forward and K backward passes.

    Args:
      logits_fn: image `[B, ...]` -> logits `[B, K]`, each image on its own (evaluation mode).
      delta_x: (image, label, target, index) -> `[B, ...]`, a vector to class `target`; None leaves
        `alpha_delta_x` out.
      image: `[B, ...]` in [-1, 1].
      label: int `[B]`, the ground truth y.
      index: int `[B]`, each image's place in its data set, handed to `delta_x`.

    Returns:
      `[B]` arrays: `target` (c̃, Eq. 5), `distance` (signed, linearised, to c̃; Lemma 1), `alpha_delta_x`
      (cos(Δx, ∇ℓ) with ℓ = logit_c̃ - logit_y; Eqs. 6 and 8), `alpha_x` (|cos(x, ∇logit_m)|, Eq. 18) and the
      other gradients of Table S2: `alpha_x_label` (Ψ_y), `alpha_x_target_label` (Ψ_c̃ - Ψ_y) and
      `alpha_x_closest_predicted` (Ψ_c* - Ψ_m).
    """
    logits, jacobian = input_jacobian(logits_fn, image)
    rows = jnp.arange(image.shape[0])
    predicted = jnp.argmax(logits, axis=-1)
    target, distance = closest_class(logits, jacobian, label)
    closest, _ = closest_class(logits, jacobian, predicted)
    towards_target = jacobian[rows, target] - jacobian[rows, label]
    towards_closest = jacobian[rows, closest] - jacobian[rows, predicted]
    result = {
        "target": target,
        "distance": distance[rows, target],
        "alpha_x": jnp.abs(cosine_similarity(image, jacobian[rows, predicted])),
        "alpha_x_label": jnp.abs(cosine_similarity(image, jacobian[rows, label])),
        "alpha_x_target_label": jnp.abs(cosine_similarity(image, towards_target)),
        "alpha_x_closest_predicted": jnp.abs(cosine_similarity(image, towards_closest)),
    }
    if delta_x is not None:
        result["alpha_delta_x"] = cosine_similarity(delta_x(image, label, target, index), towards_target)
    return result


def by_class(
    logits_fn: LogitsFn, delta_x: DeltaX | None, image: Array, label: Array, index: Array | None = None
) -> dict[str, Array]:
    """Lemma 1's linear approximation and the alignment towards every class; arguments as in `measure`.

    Returns:
      `[B, K]` arrays: `distance` (signed, linearised, to each class's boundary with y; +inf at y) and, with a Δx,
      `alignment` (cos(Δx to class k, ∇(logit_k - logit_y)); NaN at y).
    """
    logits, jacobian = input_jacobian(logits_fn, image)
    classes, rows = logits.shape[-1], jnp.arange(len(image))
    result = {"distance": closest_class(logits, jacobian, label)[1]}
    if delta_x is not None:

        def towards(k):
            target = jnp.full_like(label, k)
            cosine = cosine_similarity(delta_x(image, label, target, index), jacobian[:, k] - jacobian[rows, label])
            return jnp.where(label == k, jnp.nan, cosine)

        result["alignment"] = jax.lax.map(towards, jnp.arange(classes)).T
    return result


def target_gradient(logits_fn: LogitsFn, image: Array, label: Array) -> tuple[Array, Array]:
    """∇ℓ(x) `[B, ...]` with ℓ = logit_c̃ - logit_y (Eq. 6), and c̃ `[B]`: the gradient that should point along Δx."""
    logits, jacobian = input_jacobian(logits_fn, image)
    target, _ = closest_class(logits, jacobian, label)
    rows = jnp.arange(image.shape[0])
    return jacobian[rows, target] - jacobian[rows, label], target


def aligned_forward(
    logits_fn, delta_x: DeltaX, image: Array, label: Array, index: Array | None = None
) -> tuple[Array, Array, object]:
    """One forward pass with the alignment that the penalty of Eq. 9 rewards, differentiable in the parameters.

    The gradient ∇ℓ(x) is of the logits, not of the loss: the direction is the same, and it does not vanish for
    confident models. The choice of c̃ and the vector Δx are constants to the derivative. With two classes c̃ is
    the other one and costs nothing; with more it costs K backward passes.

    Args:
      logits_fn: image -> (logits `[B, K]`, auxiliary output), in training mode; with batch statistics the
        gradient is that of the batch's sum, cross terms included.
      delta_x, image, label, index: as in `measure`.

    Returns:
      logits `[B, K]`, cosine `[B]` = sim(Δx, ∇ℓ(x)), and the auxiliary output of `logits_fn`.
    """
    logits, pull_back, auxiliary = jax.vjp(logits_fn, image, has_aux=True)
    classes = logits.shape[-1]
    if classes == 2:
        target = 1 - label
    else:
        jacobian = _pull_back_classes(pull_back, jax.lax.stop_gradient(logits))
        target, _ = closest_class(*jax.lax.stop_gradient((logits, jacobian)), label)
    direction = jax.nn.one_hot(target, classes) - jax.nn.one_hot(label, classes)
    (gradient,) = pull_back(direction.astype(logits.dtype))
    vector = jax.lax.stop_gradient(delta_x(image, label, target, index))
    return logits, cosine_similarity(vector, gradient), auxiliary
