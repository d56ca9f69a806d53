"""Laws of downloads, against a server on this machine: what is in the cache is complete and right, or not there."""

import hashlib
import http.server
import io
import os
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pooch
import pytest

import modulekit as mk

ROOT = Path(__file__).parents[1]
CONTENT = bytes(range(256)) * 2000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Server:
    """Serves contents by path and counts what was asked for."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {"/data/file.bin": CONTENT}
        self.requests: list[str] = []
        self.pause = 0.0  # seconds between the halves of a content
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                content = outer.contents.get(self.path.partition("?")[0])
                self.send_response(404 if content is None else 200)
                content = content or b""
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2])
                time.sleep(outer.pause)
                self.wfile.write(content[len(content) // 2 :])

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def get(
    server: Server, cache: Path, name: str = "/data/file.bin", checksum: str = f"sha256:{DIGEST}", **more: Any
) -> Path:
    return mk.data.download(server.url + name, checksum, cache, progress=False, **more)


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "md5"])
def test_a_file_is_fetched_once(server: Server, tmp_path: Path, algorithm: str) -> None:
    checksum = f"{algorithm}:{hashlib.new(algorithm, CONTENT).hexdigest().upper()}"
    paths = [get(server, tmp_path / "new" / "cache", checksum=checksum) for _ in range(2)]
    assert paths[0] == paths[1] and paths[0].name.endswith("-file.bin")
    assert paths[0].read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_valid_file_needs_no_server(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path)
    server.stop()
    assert get(server, tmp_path) == path


def test_a_damaged_file_is_fetched_again(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path)
    path.write_bytes(CONTENT[:-1])
    assert get(server, tmp_path) == path
    assert path.read_bytes() == CONTENT and len(server.requests) == 2


def test_a_wrong_checksum_leaves_nothing_behind(server: Server, tmp_path: Path) -> None:
    server.contents["/data/file.bin"] = CONTENT[:-1]
    with pytest.raises(ValueError) as caught:
        get(server, tmp_path)
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()
    assert str(caught.value) == (
        f"{server.url}/data/file.bin: expected the sha256 checksum {DIGEST}, got {found} for 511999 bytes, which were not "
        f"kept; ask whether the file was changed, or correct the checksum"
    )
    assert files(tmp_path) == []


def test_a_wrong_download_does_not_replace_a_damaged_file(server: Server, tmp_path: Path) -> None:
    path = get(server, tmp_path)
    path.write_bytes(b"damaged")
    server.contents["/data/file.bin"] = b"changed"
    with pytest.raises(ValueError, match="expected the sha256 checksum"):
        get(server, tmp_path)
    assert files(tmp_path) == [path] and path.read_bytes() == b"damaged"


def test_contents_of_one_name_do_not_meet(server: Server, tmp_path: Path) -> None:
    server.contents["/other/file.bin"] = b"other"
    other = get(server, tmp_path, "/other/file.bin", sha256(b"other"))
    assert get(server, tmp_path) != other and other.read_bytes() == b"other"


def test_a_name_ends_where_a_query_begins(server: Server, tmp_path: Path) -> None:
    server.contents["/"] = b"root"
    assert get(server, tmp_path, "/data/file.bin?token=a/b").name == f"{DIGEST[:16]}-file.bin"
    assert get(server, tmp_path, "/", sha256(b"root")).name.endswith("-file")


def test_the_environment_says_where_the_cache_is(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODULEKIT_CACHE", str(tmp_path / "named"))
    path = mk.data.download(server.url + "/data/file.bin", f"sha256:{DIGEST}")
    assert path.parent == tmp_path / "named"
    monkeypatch.delenv("MODULEKIT_CACHE")
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "platform" / project)
    path = mk.data.download(server.url + "/data/file.bin", f"sha256:{DIGEST}")
    assert path.parent == tmp_path / "platform" / "modulekit"


@pytest.mark.parametrize("announced", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    texts = []
    for is_terminal in (True, False):
        screen = io.StringIO()
        screen.isatty = lambda is_terminal=is_terminal: is_terminal  # type: ignore[method-assign]
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", screen)
            patch.setenv("TERM", "xterm")
            mk.data.download(server.url + "/data/file.bin", f"sha256:{DIGEST}", tmp_path / str(is_terminal), announced)
        texts.append(screen.getvalue())
    assert ("file.bin" in texts[0] and "512.0" in texts[0]) == announced
    assert "━" not in texts[1]


# Archives.

TREE = {"a.txt": b"one", "deep/b.bin": CONTENT}
Entries = list[tuple[str, bytes]]


def zipped(entries: Entries) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return memory.getvalue()


def tarred(entries: Entries, mode: str = "w:gz", kind: bytes = tarfile.REGTYPE) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in entries:
            member = tarfile.TarInfo(name)
            member.type = kind if not name.endswith("/") else tarfile.DIRTYPE
            member.size = len(content) if kind == tarfile.REGTYPE else 0
            member.linkname = "/etc/passwd"
            archive.addfile(member, io.BytesIO(content))
    return memory.getvalue()


PACKED: dict[str, Callable[[Entries], bytes]] = {
    "zip": zipped,
    "tar.gz": tarred,
    "tar": lambda entries: tarred(entries, "w"),
    "tar.xz": lambda entries: tarred(entries, "w:xz"),
}


def unpacked(server: Server, cache: Path, content: bytes) -> Path:
    server.contents["/archive"] = content
    return get(server, cache, "/archive", sha256(content), unpack=True)


@pytest.mark.parametrize("kind", PACKED)
def test_an_archive_becomes_a_directory(server: Server, tmp_path: Path, kind: str) -> None:
    content = PACKED[kind]([("empty/", b""), *TREE.items()])
    directory = unpacked(server, tmp_path, content)
    assert {str(p.relative_to(directory)): p.read_bytes() for p in files(directory)} == TREE
    assert (directory / "empty").is_dir()
    assert unpacked(server, tmp_path, content) == directory
    assert len(server.requests) == 1


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", ["../out", "/tmp/out", "a/../../out", ".."])
def test_a_name_that_leads_out_is_refused_and_nothing_stays(
    server: Server, tmp_path: Path, kind: str, name: str
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(ValueError) as caught:
        unpacked(server, cache, PACKED[kind]([("a.txt", b"fine"), (name, b"evil")]))
    text = f"holds {name!r}, which leads out of the directory; do not trust where it comes from"
    assert text in str(caught.value)
    assert files(tmp_path) == [cache / path.name for path in cache.iterdir()]  # the archive, and no directory
    assert len(files(tmp_path)) == 1 and not Path("/tmp/out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_a_link_or_a_device_is_refused(server: Server, tmp_path: Path, kind: bytes) -> None:
    with pytest.raises(
        ValueError, match=r"holds 'a', which is neither a file nor a directory but a link or a device; "
    ):
        unpacked(server, tmp_path, tarred([("a", b"")], kind=kind))
    assert len(list(tmp_path.iterdir())) == 1


# Two processes at once.


def test_two_processes_get_one_file_and_one_directory(server: Server, tmp_path: Path) -> None:
    archive = zipped(list(TREE.items()))
    server.contents["/archive"] = archive
    server.pause = 0.3  # so that both are at it at once
    command = [sys.executable, ROOT / "tests" / "subprocesses" / "downloading.py"]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]

    def answers() -> list[str]:
        return [process.stdout.readline().strip() for process in processes]  # type: ignore[union-attr]

    def both(request: str) -> Path:
        for process in processes:
            process.stdin.write(f"{server.url}{request}\n")  # type: ignore[union-attr]
            process.stdin.flush()  # type: ignore[union-attr]
        first, second = answers()
        assert first == second and first, [process.communicate()[1] for process in processes]
        return Path(first)

    assert answers() == ["ready", "ready"]
    file = both(f"/data/file.bin sha256:{DIGEST} {tmp_path / 'files'} PLAIN")
    assert file.read_bytes() == CONTENT and files(tmp_path) == [file]
    assert len(server.requests) == 2
    directory = both(f"/archive {sha256(archive)} {tmp_path / 'archives'} UNPACK")
    assert {str(p.relative_to(directory)): p.read_bytes() for p in files(directory)} == TREE
    assert len(list((tmp_path / "archives").iterdir())) == 2  # the archive and the directory
    for process in processes:
        process.communicate(timeout=60)
        assert process.returncode == 0


# Errors.


def test_what_is_no_archive_is_refused(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a zip or tar archive, got .*-archive, which is neither; "):
        unpacked(server, tmp_path, b"no archive")


def test_a_file_that_is_not_there_says_so(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError) as caught:
        get(server, tmp_path, "/nothing")
    text = str(caught.value)
    assert text.startswith(f"{server.url}/nothing cannot be downloaded: 404")
    assert text.endswith(f"; try again, or put the file at {tmp_path / f'{DIGEST[:16]}-nothing'} by other means")
    assert files(tmp_path) == []


def test_a_server_that_is_not_there_says_so(server: Server, tmp_path: Path) -> None:
    server.stop()
    with pytest.raises(ConnectionError, match=r"cannot be downloaded: .*; try again"):
        get(server, tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "checksum", ["", DIGEST, f"sha256:{DIGEST[1:]}", "md5:" + "g" * 32, f"sha3_256:{DIGEST}", "sha256:"]
)
def test_a_checksum_of_another_form_is_refused(checksum: str) -> None:
    with pytest.raises(ValueError) as caught:
        mk.data.download("http://127.0.0.1:1/a", checksum)
    assert str(caught.value) == (
        f"expected a checksum such as 'sha256:' and 64 hexadecimal digits (or sha512 or md5), got {checksum!r}; "
        f"`sha256sum FILE` prints that of a file"
    )


@pytest.mark.parametrize("url", ["/local/file", "file:///local/file", "ftp://server/file"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=f"begins with http:// or https://, got {url!r}; read"):
        mk.data.download(url, f"sha256:{DIGEST}")


def test_a_missing_pooch_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r'needs pooch.*; install it with: pip install "modulekit\[download\]"'):
        mk.data.download("http://127.0.0.1:1/a", f"sha256:{DIGEST}")
