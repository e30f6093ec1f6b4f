"""The method in PyTorch, to compare with: networks with our weights (`models`) and training steps in two styles.

`authors` does the work of the authors' training loop, `lean` only what the method needs. Both modules have the same
functions: `optimizer`, `make_attack`, `make_step`, `input_jacobian`.
"""
