"""Downloads into a cache: a file is fetched once, checked by its checksum each time, and used from then on.

The name in the cache begins with the checksum, so that one content is one file, from wherever it came. A file appears
under its name when it is complete and right; pooch does that.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modulekit.data.archive import unpack as unpack_archive

_CACHE = "MODULEKIT_CACHE"
_ALGORITHMS = ("sha256", "sha512", "md5")
_CHUNK = 2**16  # bytes


def download(
    url: str,
    checksum: str,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    unpack: bool = False,
) -> Path:
    """Returns a file of the cache, downloading it if it is not there or not what it was.

    Args:
      url: where the file is, `http://` or `https://`.
      checksum: of the file: `"sha256:..."`, `"sha512:..."` or `"md5:..."`.
      cache_dir: where files are kept; if None, the directory that the environment variable MODULEKIT_CACHE names, else
        the platform's cache directory.
      progress: whether to show the progress, on a terminal.
      unpack: whether the file is a zip or tar archive to unpack.

    Returns:
      The path of the file, or of the directory that it was unpacked to. A file with the right checksum that is there
      needs no network.

    Raises:
      ValueError: if what was downloaded has another checksum, and then nothing is kept; if the checksum or the URL is
        not of these forms; if an archive holds names that lead out of its directory.
      ConnectionError: if the file cannot be downloaded.
      ImportError: if pooch, which the extra `download` installs, is missing.

    >>> import functools, hashlib, http.server, pathlib, tempfile, threading
    >>> from modulekit.data import download
    >>> class Quiet(http.server.BaseHTTPRequestHandler):
    ...     def do_GET(self): self.send_response(200); self.end_headers(); self.wfile.write(b"5 0 4")
    ...     def log_message(self, *args): pass
    >>> server = http.server.HTTPServer(("127.0.0.1", 0), Quiet)
    >>> threading.Thread(target=server.serve_forever, daemon=True).start()
    >>> url = f"http://127.0.0.1:{server.server_port}/labels.txt"
    >>> with tempfile.TemporaryDirectory() as cache:
    ...     download(url, "sha256:" + hashlib.sha256(b"5 0 4").hexdigest(), cache).read_text()
    '5 0 4'
    >>> server.shutdown()
    """
    algorithm, digest = _parsed(checksum)
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"expected a URL that begins with http:// or https://, got {url!r}; read local files directly")
    try:
        import pooch  # optional, and slow to import
    except ImportError as error:
        raise ImportError(
            f'download() needs pooch, which did not import ({error}); install it with: pip install "modulekit[download]"'
        ) from error
    directory = Path(cache_dir or os.environ.get(_CACHE) or pooch.os_cache("modulekit")).expanduser().absolute()
    name = f"{digest[:16]}-{urlsplit(url).path.rpartition('/')[2] or 'file'}"

    def fetch(url: str, output_file: str, _: Any) -> None:
        _fetch(pooch, url, output_file, directory / name, progress)
        found = pooch.file_hash(output_file, algorithm)
        if found != digest:
            raise ValueError(
                f"{url}: expected the {algorithm} checksum {digest}, got {found} for {os.path.getsize(output_file)} "
                f"bytes, which were not kept; ask whether the file was changed, or correct the checksum"
            )

    path = Path(pooch.retrieve(url, f"{algorithm}:{digest}", name, directory, downloader=fetch))
    return unpack_archive(path, directory / f"{name}.unpacked") if unpack else path


def _parsed(checksum: str) -> tuple[str, str]:
    algorithm, _, digest = checksum.lower().partition(":")
    known = algorithm in _ALGORITHMS
    length = hashlib.new(algorithm).digest_size * 2 if known else 0
    if not known or len(digest) != length or set(digest) - set("0123456789abcdef"):
        raise ValueError(
            f"expected a checksum such as 'sha256:' and 64 hexadecimal digits (or sha512 or md5), got {checksum!r}; "
            f"`sha256sum FILE` prints that of a file"
        )
    return algorithm, digest


def _fetch(pooch: Any, url: str, output_file: str, target: Path, progress: bool) -> None:
    import requests  # what pooch downloads with

    try:
        with _bar(target.name, progress) as bar:
            pooch.HTTPDownloader(progressbar=bar, chunk_size=_CHUNK)(url, output_file, None)
    except requests.exceptions.RequestException as error:
        raise ConnectionError(
            f"{url} cannot be downloaded: {error}; try again, or put the file at {target} by other means"
        ) from error


class _Bar:
    """What pooch expects of a progress bar, drawn by rich."""

    def __init__(self, display: Any, name: str) -> None:
        self._display, self._task = display, display.add_task(name, total=None)
        self.total = 0

    def update(self, count: int) -> None:
        """Counts bytes, of as many as the server announced, if it did."""
        self._display.update(self._task, advance=count, total=self.total or None)

    def reset(self) -> None:
        """Begins again; pooch does that to fill the bar at the end."""
        self._display.reset(self._task)

    def close(self) -> None:
        """Leaves the bar as it is."""


@contextmanager
def _bar(name: str, progress: bool) -> Iterator[_Bar | bool]:
    """Shows a bar if that is wanted and there is a terminal."""
    if not progress or not sys.stderr.isatty():
        yield False
        return
    import rich.console
    import rich.progress

    console = rich.console.Console(stderr=True)
    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as display:
        yield _Bar(display, name)
