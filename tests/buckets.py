"""Stand-ins for buckets, behind `gs://` and `s3://`: fsspec's memory file system, and a directory without rename."""

import errno
import os
import shutil
from pathlib import Path
from typing import ClassVar

import fsspec
from etils.epath import backend
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem


class Memory(MemoryFileSystem):
    """gs://: objects in memory."""

    protocol = ("gs", "gcs")
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs://").strip("/") if path not in ("", "/") else ""

    def glob(self, path, **options):
        return [name.lstrip("/") for name in super().glob(path, **options)]

    def mv(self, *arguments, **options):
        raise OSError(errno.ENOSYS, "no rename")


class WithoutRename(LocalFileSystem):
    """s3://: a directory on disk whose files cannot be renamed, linked or appended to."""

    protocol = ("s3", "s3a")
    root = Path()
    opened: ClassVar[list] = []

    def __init__(self, **options):
        super().__init__(auto_mkdir=True, **options)

    @classmethod
    def _strip_protocol(cls, path):
        inside = str(path).removeprefix("s3://")
        return inside if inside.startswith(str(cls.root)) else str(cls.root / inside.strip("/"))

    def open(self, path, mode="rb", **options):
        assert mode in ("r", "rb", "w", "wb", "xb"), mode
        self.opened.append(path)
        return super().open(path, mode, **options)

    def glob(self, path, **options):
        return [str(Path(name).relative_to(self.root)) for name in super().glob(path, **options)]

    def mv(self, *arguments, **options):
        raise OSError(errno.ENOSYS, "no rename")


def install(monkeypatch, root):
    """Put the stand-ins behind gs:// and s3://, the latter in the directory `root`."""

    def refuse(function):
        def checked(source, target, *rest, **options):
            if str(target).startswith(str(root)):
                raise OSError(errno.ENOSYS, "no rename", str(target))
            return function(source, target, *rest, **options)

        return checked

    monkeypatch.setattr(Memory, "store", {})
    monkeypatch.setattr(Memory, "pseudo_dirs", [""])
    monkeypatch.setattr(WithoutRename, "root", root)
    monkeypatch.setattr(WithoutRename, "opened", [])
    for name in ("rename", "replace", "link", "symlink"):
        monkeypatch.setattr(os, name, refuse(getattr(os, name)))
    monkeypatch.setattr(shutil, "move", refuse(shutil.move))
    for protocol, files in (("gs", Memory), ("gcs", Memory), ("s3", WithoutRename)):
        fsspec.register_implementation(protocol, files, clobber=True)
    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
