"""Files whose content type is known: what the network of magika is calibrated on and measured by.

Two packages: the examples of pygments 2.19.2, written for its lexers (BSD), and files of
react-native 0.72.0 (MIT). A label is magika's name of a content type. It is given where it is
plain: by the folder of a lexer whose language is one content type, and by endings that mean one
type only. The examples of other lexers have no label, and only tell whether two networks agree.

Files shorter than `SHORTEST` bytes are left out (magika itself decides on less than 8 without its
network), of longer ones the middle is cut out, and of react-native at most `MOST` files of a type
are taken, the first by sha256. Half of all files are for calibration, half for tests, by the sha256
of what is kept: 389 and 375 files, of which 181 and 163 have a label.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.data.packages import NpmPackage, Package, PackageGroup, PipSource
from experiments.pretrained.published import published

SHORTEST, MOST = 256, 20
END = 4096
"""Bytes that are kept of each end of a file; magika looks at no others."""
_KEPT = "files.json"
SHA256 = "f0980cd959a438c33e093ab7f5578173a7d34bf31ade34a45fcb8ca1d2d6aa37"

# Folders of examples by content type; the others have no label.
_LEXERS = {
    **{"asm": "nasm", "asp": "aspx-cs aspx-vb", "autohotkey": "ahk", "autoit": "autoit"},
    **{"awk": "awk", "batch": "bat", "bib": "bib", "c": "c", "clojure": "clojure clojurescript"},
    **{"cmake": "cmake", "cobol": "cobol", "coffeescript": "coffee-script", "cpp": "cpp"},
    **{"cs": "csharp", "css": "css", "dart": "dart", "dockerfile": "docker", "elixir": "elixir"},
    **{"eml": "email", "erb": "rhtml", "erlang": "erlang", "fortran": "fortran fortranfixed"},
    **{"go": "go", "handlebars": "html+handlebars", "haskell": "haskell", "html": "html"},
    **{"ini": "ini", "java": "java", "javascript": "js", "json": "json", "julia": "julia"},
    **{"kotlin": "kotlin", "lisp": "common-lisp emacs scheme", "lua": "lua", "makefile": "make"},
    **{"markdown": "md", "matlab": "matlab", "objectivec": "objective-c", "ocaml": "ocaml"},
    **{"pascal": "delphi", "perl": "perl", "php": "php", "po": "pot", "postscript": "postscript"},
    **{"powershell": "powershell", "prolog": "prolog", "proto": "protobuf", "python": "python"},
    **{"rst": "rst", "ruby": "rb", "rust": "rust", "scala": "scala", "shell": "bash"},
    **{"smali": "smali", "solidity": "solidity", "sql": "tsql", "swift": "swift"},
    **{"toml": "toml", "twig": "twig", "typescript": "ts tsx", "vba": "vb.net vbscript"},
    **{"verilog": "systemverilog verilog", "vhdl": "vhdl", "vue": "vue", "winregistry": "registry"},
    **{"xml": "xml", "yaml": "yaml", "yara": "yara", "zig": "zig"},
}
# Endings of react-native's files that mean one content type there.
_ENDINGS = {
    **{".S": "asm", ".cmake": "cmake", "CMakeLists.txt": "cmake", ".cpp": "cpp", ".dll": "pebin"},
    **{".gradle": "gradle", ".java": "java", ".json": "json", ".kt": "kotlin", ".m": "objectivec"},
    **{".md": "markdown", ".png": "png", ".rb": "ruby", ".sh": "shell", ".ts": "typescript"},
    **{".xml": "xml"},
}
_LABELS = {folder: label for label, folders in _LEXERS.items() for folder in folders.split()}


class TypedFile(NamedTuple):
    """A file.

    Attributes:
      name: its package and its path there.
      label: its content type, or None.
      content: its bytes.
    """

    name: str
    label: str | None
    content: bytes


class Parts(NamedTuple):
    """Files for calibration and for tests, each in the order of the sha256 of their contents."""

    calibration: list[TypedFile]
    test: list[TypedFile]


class _Chosen(NamedTuple):
    """The chosen files of packages as one file: a package of its own."""

    packages: PackageGroup

    def __str__(self) -> str:
        return str(self.packages)

    def files(self, names: Sequence[str], *, timeout: float = 300.0) -> dict[str, bytes]:
        """Fetch the packages, and write what is chosen of them as JSON under every name."""
        patterns = ["examples/*", *(f"react-native/*{ending}" for ending in _ENDINGS)]
        chosen = choose(self.packages.files(patterns, timeout=timeout))
        # Bytes are the first 256 signs of Unicode: JSON holds any content, byte by byte.
        texts = {name: content.decode("latin-1") for name, content in chosen.items()}
        whole = json.dumps(texts, sort_keys=True, ensure_ascii=False, indent=0).encode()
        return dict.fromkeys(names, whole)


def choose(raw: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that are taken, of all that were fetched, by "package/path"."""
    kept = {
        name: content if len(content) <= 2 * END else content[:END] + content[-END:]
        for name, content in raw.items()
        if len(content) >= SHORTEST and not name.endswith(".output")
    }
    counts: Counter[str | None] = Counter()
    chosen: dict[bytes, str] = {}
    for digest, name in _by_sha256(kept):
        label = label_of(name)
        mine = not name.startswith("examples/")
        if digest not in chosen and not (mine and counts[label] == MOST):
            chosen[digest] = name
            counts[label] += mine
    return {name: kept[name] for name in chosen.values()}


def _by_sha256(files: Mapping[str, bytes]) -> list[tuple[bytes, str]]:
    return sorted((hashlib.sha256(content).digest(), name) for name, content in files.items())


def label_of(name: str) -> str | None:
    """The content type of a file by its "package/path", where it is plain.

    Examples:
      >>> label_of("examples/rb/test.rb"), label_of("react-native/a/b.kt")
      ('ruby', 'kotlin')
      >>> label_of("examples/agda/test.agda")
    """
    package, _, path = name.partition("/")
    if package == "examples":
        return _LABELS.get(path.partition("/")[0])
    return next((label for ending, label in _ENDINGS.items() if path.endswith(ending)), None)


def split(files: Mapping[str, bytes]) -> Parts:
    """Put files into parts by the sha256 of their contents."""
    parts = Parts([], [])
    for digest, name in _by_sha256(files):
        # The first bit orders the files, so another one tells the parts apart.
        parts[digest[-1] % 2].append(TypedFile(name, label_of(name), files[name]))
    return parts


def read(data_dir: Path | None = None) -> Parts:
    """Read the files, as kept by an earlier call or out of their packages.

    Raises:
      DataUnavailable: neither has them.
    """
    found = published("typed-files", _CHOSEN, {_KEPT: SHA256}, data_dir)[_KEPT]
    return split({name: text.encode("latin-1") for name, text in json.loads(found).items()})


_PARTS: tuple[tuple[str, Package], ...] = (
    (
        "examples",
        PipSource(
            "pygments",
            "2.19.2",
            sha256="636cb2477cec7f8952536970bc533bc43743542f70392ae026374600add5b887",
            folder="pygments-2.19.2/tests/examplefiles",
            seconds=60,
        ),
    ),
    ("react-native", NpmPackage("react-native", "0.72.0", folder="package", seconds=60)),
)
_CHOSEN = _Chosen(PackageGroup(_PARTS))
