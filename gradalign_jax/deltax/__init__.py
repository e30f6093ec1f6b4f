"""Estimators of Δx, the vector from an image to a class (sections 2.1 and 2.3), one per file.

Each has a constructor `make(...)` that returns `delta_x(image, label, target, index) -> [B, ...]` (`types.DeltaX`):

    exact        closed forms of the synthetic data sets             make(data_set)
    sample       a random image of the target class minus x          make(images, labels)
    centroid     the mean of the target class minus x                make(images, labels)
    nearest      the nearest examples of the target class minus x    make(images, labels, k=1)
    patch        the closest point of the hull of the nearest ones   make(images, labels, k=8, hull="simplex")
    transport    the target of an optimal transport between classes  make(images, labels)
    score        the difference of two classes' denoised images      make(images, labels)
    teacher      the path of an attack on a reference classifier     make(logits_fn, epsilon)
    vrgan        the residual of a trained VR-GAN generator          make(generate_fn)
    encoder      a conditional GAN's image, by a learned latent      make(generate_fn, images, labels)

`projection` searches the manifold of a conditional GAN, which takes hours for a data set, so it has two steps:
`make(...)` or `make_fast(...)` returns `project(generate_fn, image, target) -> z`, and
`delta_x(generate_fn, image, target, z)` is the vector.

`python launch/deltax.py` scores them; launch/estimators.md has the tables, and which one to use.

To add an estimator, add a file with such a `make`, and a row in the table of tests/test_deltax.py. The function must be
traceable by `jax.jit` and treat each image of the batch on its own. Large arrays belong in a `jax.tree_util.Partial`,
which passes through `jax.jit` as an argument, where a closure's arrays would become constants of the program.
"""
