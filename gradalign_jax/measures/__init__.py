"""Measures of a gradient besides its cosine with Δx (`alignment.cosine_similarity`), one per file.

    etmann     |<x, g>| / |g|, Etmann's alignment
    tangent    share of |g|² in the tangent space of a generator's images
    noise      change of the prediction by noise in that tangent space and orthogonal to it
    removal    images without the pixels that a gradient ranks highest

Each takes images, gradients and functions, and knows nothing of where they come from.
`evaluation/directions.py` makes all of them.
"""
