"""Download official files within bounded time.

tensorflow_datasets' own downloader sets no timeout and tries eleven times with growing pauses:
without a route it blocks for minutes. So the files are fetched here, into the directory where its
DownloadManager looks for files fetched by hand; the manager then verifies them against its table.
"""

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from experiments.data.ladder import NotHere, describe
from experiments.data.progress import bar

_CONNECT_SECONDS = 5.0
_READ_SECONDS = 10.0
_BLOCK = 1 << 16
PATIENCE = 15.0

_Block = tuple[str, bytes] | Exception | None


def fetch(
    urls: Mapping[str, str], into: Path, *, total: int | None = None, patience: float = PATIENCE
) -> None:
    """Download every url to `into / name`.

    Args:
        urls: url by file name.
        into: an existing directory.
        total: bytes expected in all, for the progress bar.
        patience: seconds without a new byte after which the download is given up.

    Raises:
        NotHere: a url cannot be reached, or stalls.
    """
    blocks: queue.Queue[_Block] = queue.Queue(maxsize=64)
    # Timeouts of sockets bound neither name look-up nor a host with many dead addresses. A
    # daemon thread bounds everything: it is left behind, and does not keep the process alive.
    threading.Thread(target=_pump, args=(urls, blocks, patience), daemon=True).start()
    with ExitStack() as stack:
        files = {name: stack.enter_context((into / name).open("wb")) for name in urls}
        advance = stack.enter_context(bar("downloading", total))
        while (block := _next(blocks, patience)) is not None:
            name, content = block
            files[name].write(content)
            advance(len(content))


def _next(blocks: queue.Queue[_Block], patience: float) -> tuple[str, bytes] | None:
    try:
        block = blocks.get(timeout=patience)
    except queue.Empty:
        raise NotHere(f"no answer within {patience:g} s") from None
    if isinstance(block, Exception):
        raise NotHere(f"cannot be reached ({describe(block)})") from block
    return block


def _pump(urls: Mapping[str, str], blocks: queue.Queue[_Block], patience: float) -> None:
    # Every put is bounded: when the reader has given up, this thread ends too.
    with suppress(queue.Full):
        try:
            for name, url in urls.items():
                for content in _stream(url):
                    blocks.put((name, content), timeout=patience)
            blocks.put(None, timeout=patience)
        except queue.Full:
            raise
        except Exception as error:  # handed over: the reader raises it
            blocks.put(error, timeout=patience)


def _stream(url: str) -> Iterator[bytes]:
    import requests  # comes with tensorflow_datasets

    timeout = (_CONNECT_SECONDS, _READ_SECONDS)
    with requests.get(url, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        yield from response.iter_content(_BLOCK)
