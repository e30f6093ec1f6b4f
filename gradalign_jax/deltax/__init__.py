"""Estimators of Δx, the vector from an image to a class (sections 2.1 and 2.3), one per file.

Each has a constructor `make(...)` that returns `delta_x(image, label, target, index) -> [B, ...]` (`types.DeltaX`):

    exact        closed forms of the synthetic data sets            make(data_set)
    vrgan        the residual of a trained VR-GAN generator         make(generate_fn)
    centroid     the mean of the target class minus x               make(images, labels)
    nearest      the nearest examples of the target class minus x   make(images, labels, k=1)

`projection` searches the manifold of a conditional GAN, which takes hours for a data set, so it has two steps:
`make(...) -> project(generate_fn, image, target) -> z`, and `delta_x(generate_fn, image, target, z)`.

To add an estimator, add a file with such a `make`, and a row in the table of tests/test_deltax.py. The function must be
traceable by `jax.jit` and treat each image of the batch on its own. Large arrays belong in a `jax.tree_util.Partial`,
which passes through `jax.jit` as an argument, where a closure's arrays would become constants of the program.
"""
