"""Committed results as pages of the site, and their tables inside other pages.

`experiments/results/*.md` and `benchmarks/results/*.md` become pages under `results/`, with their
pictures. Any other page takes a table in by a comment, so that no number is typed twice:

    <!-- table: benchmarks/results/removing.md -->

takes the file, and

    <!-- table: experiments/results/minified_models-mnist-0af1158280.md | At equal bytes on disk -->

the paragraph that begins so, up to the end of the table after it. A link to `@experiments/FILE.md`
or `@benchmarks/FILE.md` goes to the page of that file.
"""

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FOLDERS = ("experiments", "benchmarks")
MARK = re.compile(r"^<!-- table: (\S+?)(?: \| (.+?))? -->$", re.MULTILINE)
LINK = re.compile(r"\]\(@(\w+)/([^)\s]+)\)")


def committed() -> list[Path]:
    """The tables, of experiments first."""
    return [path for name in FOLDERS for path in sorted((ROOT / name / "results").glob("*.md"))]


def page_of(path: Path) -> str:
    """Where a file of results is in the site."""
    return f"results/{path.parent.parent.name}/{path.name}"


def excerpt(path: str, words: str | None) -> str:
    """A file of results, or the paragraph that begins with `words` and the table after it.

    Raises:
      ValueError: no such file, no such paragraph, more than one, or no table after it.
    """
    file = ROOT / path
    if file not in committed():
        raise ValueError(f"There are no results {path}. Give the path from the repository's root.")
    text = file.read_text(encoding="utf-8").strip()
    if words is None:
        return text
    blocks = text.split("\n\n")
    found = [i for i, block in enumerate(blocks) if block.startswith(words)]
    if len(found) != 1:
        raise ValueError(f"{path} has {len(found)} paragraphs that begin with {words!r}, not 1.")
    for end, block in enumerate(blocks[found[0] :], found[0]):
        if block.startswith("|"):
            return "\n\n".join(blocks[found[0] : end + 1])
    raise ValueError(f"{path} has no table after {words!r}.")


def expand(markdown: str, page: str) -> str:
    """A page's text with its tables in it, each followed by a link to where it comes from."""
    up = "../" * page.count("/")

    def table(match: re.Match[str]) -> str:
        path, words = match.groups()
        return f"{excerpt(path, words)}\n\n*From [{path}]({up}{page_of(ROOT / path)}).*"

    markdown = MARK.sub(table, markdown)
    return LINK.sub(lambda m: f"]({up}results/{m[1]}/{m[2]})", markdown)


def index() -> str:
    """The page that lists all results."""
    lines = [
        "# Measured",
        "",
        "The committed results, as the experiments and benchmarks wrote them. Every table says by "
        "which command, on which machine, with how many seeds.",
    ]
    for folder in FOLDERS:
        lines += ["", f"## {folder}", ""]
        ours = [path for path in committed() if path.parent.parent.name == folder]
        lines += [f"- [{path.stem}]({folder}/{path.name})" for path in ours]
    return "\n".join(lines) + "\n"


def on_files(files: Any, config: Any) -> Any:
    """Adds the results to the site's files."""
    from mkdocs.structure.files import File

    def add(page: str, text: str) -> None:
        files.append(File.generated(config, page, content=text))

    add("results/index.md", index())
    for path in committed():
        text = path.read_text(encoding="utf-8")
        add(page_of(path), text if text.startswith("# ") else f"# {path.stem}\n\n{text}")
    for name in FOLDERS:
        for path in sorted((ROOT / name / "results").glob("*.png")):
            files.append(File.generated(config, page_of(path), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """Takes the tables in; an error here ends the build."""
    return expand(markdown, page.file.src_uri)
