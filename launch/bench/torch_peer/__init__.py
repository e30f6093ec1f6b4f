"""A PyTorch peer to compare with: `models` (networks, weights carried over) and training steps in two styles.

`authors` does the work that the authors' training loop does, `lean` only what the method needs. Both modules
have the same functions: `optimizer`, `make_attack`, `make_step`, `input_jacobian`.
"""
