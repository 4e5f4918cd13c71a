"""Readers: a file (or a folder of images) -> the frames asked for. To add one: a class and a line here."""

import importlib
from functools import cache

from extract.readers.media import Frames, MediaInfo, Reader, ReadError
from store.errors import UnknownNameError

READERS = {
    "video": "extract.readers.video:VideoReader",
    "images": "extract.readers.images:ImageReader",
    "depth-png": "extract.readers.images:DepthImageReader",
    "ntu-skeleton": "extract.readers.ntu_skeleton:NTUSkeletonReader",
    "skeleton-npy": "extract.readers.skeleton_npy:SkeletonNpyReader",
    "openpose-3d": "extract.readers.openpose_csv:OpenPoseCsvReader",
    "mat": "extract.readers.mat:MatReader",
    "audio": "extract.readers.audio:AudioReader",
    "text": "extract.readers.text:TextReader",
}


@cache
def load_reader(name: str) -> Reader:
    """The reader of that name; one instance a process, so that it may keep the last file open.

    Raises:
        UnknownNameError: With the names that there are.
    """
    if name not in READERS:
        raise UnknownNameError("extract", "reader", name, sorted(READERS))
    module, _, attribute = READERS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)()


__all__ = ["READERS", "Frames", "MediaInfo", "ReadError", "Reader", "load_reader"]
