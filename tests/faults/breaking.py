"""Ways in which files are damaged and disks fail."""

import errno
import os
import random

ERRORS = {"full": errno.ENOSPC, "read-only": errno.EROFS}


def gone(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def garbage(path):
    path.write_bytes(random.Random(0).randbytes(200))


def flipped(path, place=0.5):
    """One bit, at a share of the file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(bytes(content))


WAYS = {way.__name__: way for way in (gone, empty, cut, garbage, flipped)}


def disk_error(kind):
    """What a write on a full or read-only disk raises; often it does not know the path."""
    return OSError(ERRORS[kind], os.strerror(ERRORS[kind]))


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())
