"""The one setting that pyproject.toml cannot express: `configs/` is installed as `gradalign_jax/configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["gradalign_jax*"]), "gradalign_jax.configs"],
    package_dir={"gradalign_jax.configs": "configs"},
)
