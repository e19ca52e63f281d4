"""Laws of downloads and packages, against servers and clients on this machine."""

import gzip
import http.server
import io
import os
import socket
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest

from experiments.data import official, packages
from experiments.data.ladder import NotHere

# --- fetching ---


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A folder and the address of a server on this machine that serves it."""
    pytest.importorskip("requests")
    monkeypatch.setenv("NO_PROXY", "*")
    folder = tmp_path / "served"
    folder.mkdir()

    def handler(*arguments):
        return Quiet(*arguments, directory=str(folder))

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_download_is_byte_exact_even_over_many_blocks(served, tmp_path):
    folder, address = served
    contents = {"a": np.random.default_rng(0).bytes(300_000), "b": gzip.compress(b"x")}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    official.fetch({name: f"{address}/{name}" for name in contents}, tmp_path, patience=10)
    assert {name: (tmp_path / name).read_bytes() for name in contents} == contents


def test_a_file_that_the_server_does_not_have_is_no_alarm(served, tmp_path):
    with pytest.raises(NotHere, match=r"cannot be reached .*404"):
        official.fetch({"a": f"{served[1]}/a"}, tmp_path, patience=10)


def test_a_server_that_never_answers_is_given_up_in_bounded_time(tmp_path, monkeypatch):
    pytest.importorskip("requests")
    monkeypatch.setenv("NO_PROXY", "*")
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a"
        start = time.monotonic()
        with pytest.raises(NotHere, match=r"no answer within 0\.2 s"):
            official.fetch({"a": url}, tmp_path, patience=0.2)
        assert time.monotonic() - start < 5  # 0.2 s, with room for a loaded machine


PACKAGE = packages.NpmPackage("some-data", "1.2.3", folder="package/data")
APT = packages.AptPackage("some-data", folder="usr/share/data")
PIP = packages.PipPackage("some-data", "1.2.3", folder="some_data/files")


@pytest.fixture
def fake_client(tmp_path, monkeypatch):
    """Put stand-ins for clients on the path: each notes its arguments, then runs a line."""
    if os.name == "nt":
        pytest.skip("the stand-ins are shell scripts")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(name, line):
        script, arguments = folder / name, folder / f"{name}.arguments"
        script.write_text(f'#!/bin/sh\necho "$@" > "{arguments}"\n{line}\n')
        script.chmod(0o755)
        return arguments

    return install


@pytest.fixture
def fake_npm(fake_client):
    return lambda line: fake_client("npm", line)


@pytest.fixture
def fake_apt(fake_client, tmp_path):
    """An archive whose package, unpacked by a stand-in for dpkg-deb, holds the given files."""

    def install(files):
        contents = tmp_path / "contents"
        write_archive(contents, files, mode="w")
        unpacked = fake_client("dpkg-deb", f'cat "{contents}"')
        return fake_client("apt-get", "echo deb > some-data_9_all.deb"), unpacked

    return install


def write_archive(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_files_come_out_of_a_package_whose_scripts_are_not_run(fake_npm, tmp_path):
    archive = tmp_path / "archive"
    write_archive(archive, {"package/data/a": b"A", "package/data/b": b"B", "package/x": b"X"})
    arguments = fake_npm(f'cp "{archive}" some-data-1.2.3.tgz')
    assert PACKAGE._replace(seconds=99).files(["b", "a"]) == {"b": b"B", "a": b"A"}
    assert arguments.read_text().startswith("pack some-data@1.2.3 --ignore-scripts ")
    assert "--fetch-timeout=99000" in arguments.read_text().split()


def test_a_package_without_the_file_is_refused_by_name(fake_npm, tmp_path):
    archive = tmp_path / "archive"
    write_archive(archive, {"package/data/a": b"A"})
    fake_npm(f'cp "{archive}" some-data-1.2.3.tgz')
    with pytest.raises(ValueError, match=r"some-data@1\.2\.3 has no file package/data/b"):
        PACKAGE.files(["b"])


def test_a_registry_that_refuses_is_quoted(fake_npm):
    fake_npm("echo 'npm warn old' >&2; echo 'npm error code E404' >&2; exit 1")
    with pytest.raises(NotHere, match="npm pack failed: npm error code E404"):
        PACKAGE.files(["a"])


def test_a_client_that_hangs_is_stopped(fake_npm):
    fake_npm("exec sleep 60")
    with pytest.raises(NotHere, match=r"did not finish within 0\.2 s"):
        PACKAGE.files(["a"], timeout=0.2)


def test_a_machine_without_the_client_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotHere, match="npm client is not installed"):
        PACKAGE.files(["a"])


def test_a_pattern_gives_every_file_that_it_matches_and_nothing_else(fake_npm, tmp_path):
    archive = tmp_path / "archive"
    files = {f"package/data/{name}": name.encode() for name in ("x/a.txt", "x/b.txt", "x/c", "y")}
    write_archive(archive, {**files, "package/other/x/d.txt": b""})
    fake_npm(f'cp "{archive}" some-data-1.2.3.tgz')
    found = PACKAGE.files(["x/*.txt", "y"])
    assert found == {name: name.encode() for name in ("x/a.txt", "x/b.txt", "y")}
    with pytest.raises(ValueError, match=r"has no file package/data/z/\*\.txt"):
        PACKAGE.files(["x/*.txt", "z/*.txt"])


@pytest.mark.parametrize("keep", [0, 5, 200])
def test_a_damaged_archive_of_npm_is_refused_by_name(fake_npm, tmp_path, keep):
    archive = tmp_path / "archive"
    write_archive(archive, {"package/data/a": np.random.default_rng(0).bytes(5000)})
    os.truncate(archive, keep)
    fake_npm(f'cp "{archive}" some-data-1.2.3.tgz')
    with pytest.raises(ValueError, match=r"archive of npm package some-data@1\.2\.3 is damaged"):
        PACKAGE.files(["a"])


def test_files_come_out_of_an_apt_package_that_is_not_installed(fake_apt):
    files = {"./usr/share/data/a": b"A", "./usr/share/data/b": b"B", "./usr/share/a": b"no"}
    downloaded, unpacked = fake_apt(files)
    assert APT._replace(seconds=99).files(["b", "a"]) == {"b": b"B", "a": b"A"}
    arguments = downloaded.read_text().split()
    assert arguments[-2:] == ["download", "some-data"]
    assert "Acquire::http::Timeout=99" in arguments
    command, archive = unpacked.read_text().split()
    assert command == "--fsys-tarfile"
    assert os.path.basename(archive) == "some-data_9_all.deb"
    assert not os.path.exists(archive)


def test_an_apt_package_without_the_file_is_refused_by_name(fake_apt):
    fake_apt({"./usr/share/data/a": b"A"})
    with pytest.raises(ValueError, match="apt package some-data has no file usr/share/data/b"):
        APT.files(["a", "b"])


def test_a_damaged_apt_package_is_refused_with_what_the_unpacker_says(fake_apt, fake_client):
    fake_apt({})
    fake_client("dpkg-deb", "echo 'dpkg-deb: error: no Debian archive' >&2; exit 2")
    with pytest.raises(ValueError, match=r"apt package some-data is damaged .*no Debian archive"):
        APT.files(["a"])


def test_an_apt_archive_that_refuses_is_quoted(fake_apt, fake_client):
    fake_apt({})
    fake_client("apt-get", "echo 'W: old' >&2; echo 'E: Unable to locate it' >&2; exit 100")
    with pytest.raises(NotHere, match="apt-get download failed: E: Unable to locate it"):
        APT.files(["a"])


def test_an_apt_client_that_hangs_is_stopped(fake_apt, fake_client):
    fake_apt({})
    fake_client("apt-get", "exec sleep 60")
    with pytest.raises(NotHere, match=r"apt-get download did not finish within 0\.2 s"):
        APT.files(["a"], timeout=0.2)


def test_a_machine_without_apt_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotHere, match="apt-get client is not installed"):
        APT.files(["a"])


@pytest.fixture
def fake_pip(fake_client, tmp_path):
    """A stand-in for pip that leaves a wheel with the given files, or the given bytes."""

    def install(files):
        archive = tmp_path / "archive"
        if isinstance(files, bytes):
            archive.write_bytes(files)
        else:
            with zipfile.ZipFile(archive, "w") as wheel:
                for name, content in files.items():
                    wheel.writestr(name, content)
        return fake_client("pip", f'cp "{archive}" some_data-1.2.3-py3-none-any.whl')

    return install


def test_files_come_out_of_a_wheel_and_no_source_archive_is_built(fake_pip):
    files = {"some_data/files/a": b"A", "some_data/files/b/c": b"C", "some_data/a": b"no"}
    arguments = fake_pip(files)
    assert PIP._replace(seconds=99).files(["b/*", "a"]) == {"a": b"A", "b/c": b"C"}
    given = arguments.read_text().split()
    assert given[0] == "download"
    assert given[-1] == "some-data==1.2.3"
    assert {"--only-binary=:all:", "--no-deps", "--timeout=99"} <= set(given)


def test_a_wheel_without_the_file_is_refused_by_name(fake_pip):
    fake_pip({"some_data/files/a": b"A"})
    with pytest.raises(ValueError, match=r"some-data==1\.2\.3 has no file some_data/files/b"):
        PIP.files(["a", "b"])


def test_a_damaged_wheel_is_refused_by_name(fake_pip):
    fake_pip(b"PK no zip")
    with pytest.raises(ValueError, match=r"archive of pip package some-data==1\.2\.3 is damaged"):
        PIP.files(["a"])


def test_a_package_index_that_refuses_is_quoted(fake_client):
    fake_client("pip", "echo 'ERROR: No matching distribution' >&2; exit 1")
    with pytest.raises(NotHere, match="pip download failed: ERROR: No matching distribution"):
        PIP.files(["a"])


def test_a_machine_without_pip_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotHere, match="pip client is not installed"):
        PIP.files(["a"])


def test_files_come_out_of_a_source_archive_only_if_its_sha256_is_the_pinned_one(
    fake_client, tmp_path
):
    archive = tmp_path / "archive"
    write_archive(archive, {"some-data-1.2.3/tests/a": b"A", "some-data-1.2.3/a": b"no"})
    # The stand-in keeps what it was asked for: the pinned requirement lies beside the archive.
    arguments = fake_client(
        "pip", f'cp pinned.txt "{tmp_path}"; cp "{archive}" some-data-1.2.3.tar.gz'
    )
    source = packages.PipSource("some-data", "1.2.3", sha256="ab12", folder="some-data-1.2.3/tests")
    assert source._replace(seconds=99).files(["*"]) == {"a": b"A"}
    given = arguments.read_text().split()
    assert given[0] == "download"
    assert {"--require-hashes", "--no-binary=some-data", "--no-deps", "--timeout=99"} <= set(given)
    assert "--requirement=pinned.txt" in given
    assert (tmp_path / "pinned.txt").read_text() == "some-data==1.2.3 --hash=sha256:ab12\n"


def test_a_group_asks_each_package_for_its_own_files(fake_pip, fake_apt):
    fake_pip({"some_data/files/a": b"one"})
    fake_apt({"./usr/share/data/a": b"two"})
    group = packages.PackageGroup((("x", PIP), ("y", APT)))
    assert group.files(["x/a", "y/a"]) == {"x/a": b"one", "y/a": b"two"}
    assert str(group) == "pip package some-data==1.2.3 and apt package some-data"
