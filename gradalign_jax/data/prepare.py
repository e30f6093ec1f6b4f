"""Download of MNIST and CIFAR-10, prepared for `data.load` through `tensorflow_datasets`.

    python -m gradalign_jax.data.prepare mnist cifar10 [--data_dir DIR]

The downloads are 12 MB and 170 MB, verified against the digests in tfds. The builders of tfds need TensorFlow to
unpack them; these unpack the same files with the standard library and write the same records.
"""

import argparse
import gzip
import sys
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds

from gradalign_jax import data
from gradalign_jax.data import directories
from gradalign_jax.data.tfds import missing_package

Examples = Iterator[tuple[int, dict[str, Any]]]
_TFDS_MNIST = tfds.builder_cls("mnist")
_TFDS_CIFAR10 = tfds.builder_cls("cifar10")


class Mnist(_TFDS_MNIST, skip_registration=True):
    """MNIST as in tfds; the key of a record is its position in the original file."""

    url = _TFDS_MNIST.URL
    url_infos = _TFDS_MNIST.url_infos  # sizes and SHA-256 of the downloads

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        parts = {"train": "train", "test": "t10k"}
        images = dl_manager.download({s: f"{self.url}{p}-images-idx3-ubyte.gz" for s, p in parts.items()})
        labels = dl_manager.download({s: f"{self.url}{p}-labels-idx1-ubyte.gz" for s, p in parts.items()})
        return {split: self._generate_examples(images[split], labels[split]) for split in parts}

    def _generate_examples(self, images, labels) -> Examples:
        with gzip.open(images) as image_file, gzip.open(labels) as label_file:
            # An idx file is a header of 16 bytes (images) or 8 (labels), then bytes.
            image = np.frombuffer(image_file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
            label = np.frombuffer(label_file.read(), np.uint8, offset=8)
        for key, (one, its_label) in enumerate(zip(image, label, strict=True)):
            yield key, {"image": PIL.Image.fromarray(one), "label": int(its_label)}


class Cifar10(_TFDS_CIFAR10, skip_registration=True):
    """CIFAR-10 as in tfds; `id` holds the position in the original files."""

    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    url_infos = _TFDS_CIFAR10.url_infos

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        archive = dl_manager.download(self.url)
        with tarfile.open(archive) as tar:
            names = tar.extractfile("cifar-10-batches-bin/batches.meta.txt").read().decode().split()
        self.info.features["label"].names = names
        parts = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
        return {split: self._generate_examples(archive, split, files) for split, files in parts.items()}

    def _generate_examples(self, archive, split: str, files: list[str]) -> Examples:
        key = 0
        with tarfile.open(archive) as tar:
            for file in files:
                content = tar.extractfile(f"cifar-10-batches-bin/{file}").read()
                # A record: 1 byte of label, then 32 x 32 red, green and blue values.
                for record in np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32):
                    image = PIL.Image.fromarray(record[1:].reshape(3, 32, 32).transpose(1, 2, 0).copy())
                    yield key, {"id": f"{split}_{key:05d}", "image": image, "label": int(record[0])}
                    key += 1


BUILDERS = {"mnist": Mnist, "cifar10": Cifar10}


def prepare(name: str, data_dir: directories.Folder = None) -> data.Dataset:
    """Download and prepare a data set unless it is prepared already, and return it.

    Args:
      name: "mnist" or "cifar10".
      data_dir: directory to prepare it in; None: $TFDS_DATA_DIR, otherwise ~/tensorflow_datasets.

    Raises:
      DataError: the download failed or is not the expected file, or the result cannot be read.
    """
    root = directories.prepared_root(data_dir)
    try:
        builder = BUILDERS[name](data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    except Exception as error:  # a fault of the network, server, digest, disk or file format
        if missing := missing_package(error):
            raise data.DataError(f"preparing {name} needs {missing}") from error
        cause = " ".join(str(error).split())[:300]
        raise data.DataError(
            f"cannot prepare {name} ({type(error).__name__}: {cause}): check network and disk and run this"
            " again, choose another --data_dir, or copy the directory from a machine where it is prepared"
        ) from error
    return data.load(name, data_dir=root)


def main() -> None:
    """Prepare the data sets named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m gradalign_jax.data.prepare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="+", choices=sorted(BUILDERS), metavar="NAME", help="mnist, cifar10")
    parser.add_argument("--data_dir", help="default: $TFDS_DATA_DIR, then ~/tensorflow_datasets")
    arguments = parser.parse_args()
    for name in arguments.names:
        try:
            dataset = prepare(name, arguments.data_dir)
        except data.DataError as error:
            sys.exit(str(error))
        sizes = ", ".join(f"{len(split.label)} {part}" for part, split in dataset.splits.items())
        print(f"{name} is ready: {sizes}", *dataset.notes, sep="\n")


if __name__ == "__main__":
    main()
