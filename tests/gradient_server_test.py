"""Workers over a socket: they train as one process would, and whoever is not one of them changes nothing."""

import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradient_workers
import jax.numpy as jnp
import numpy as np
import pytest
from gradient_wire import GREETING, SECRET, Author, net, submission

import modulekit as mk
from scenarios.aggregation import GradientClient, GradientServer, Intake

ASKS = b'{"fields": {"kind": "weights", "after": null}, "arrays": []}'
ONES = {"b": np.ones([2], np.float32), "w": np.ones([2, 2], np.float32)}
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def intake() -> Intake:
    return Intake(net())


@pytest.fixture
def server(intake: Intake) -> Iterator[GradientServer]:
    with GradientServer(intake, SECRET) as started:
        yield started


def counted(server: GradientServer, kind: str, count: int = 1) -> None:
    """Waits until something has been counted."""
    deadline = time.monotonic() + 60
    while server.counters.get(kind, 0) < count:
        assert time.monotonic() < deadline, server.counters
        time.sleep(0.005)
    assert server.counters[kind] == count


def received(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := client.recv(size - len(data))):
        data += more
    return data


@contextlib.contextmanager
def written(server: GradientServer) -> Iterator[tuple[socket.socket, Author]]:
    """Context with a socket, and what its bytes are written by."""
    with socket.create_connection(server.address, timeout=60) as client:
        greeting = received(client, len(GREETING) + 32)
        yield client, Author(greeting[len(GREETING) :])


# Training.


def test_two_processes_train_bit_for_bit_as_one() -> None:
    alone, single = gradient_workers.made(), mk.optimizers.Momentum(0.05, 0.9)
    intake, compute = Intake(alone), gradient_workers.gradients(alone)
    for version in range(gradient_workers.STEPS):
        for index in range(2):
            weight = len(gradient_workers.share(version, index)[0])
            assert intake.submit(compute(version, index), weight, f"worker {index}", version)
        intake.apply(single)

    together, optimizer, secret = gradient_workers.made(), mk.optimizers.Momentum(0.05, 0.9), secrets.token_bytes(32)
    intake = Intake(together)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)])}
    with GradientServer(intake, secret) as server:
        command = [sys.executable, str(HERE / "gradient_workers.py"), *map(str, server.address)]
        workers = [subprocess.Popen([*command, str(index)], stdin=subprocess.PIPE, env=environment) for index in (1, 0)]
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write(secret)
            worker.stdin.close()
        for _ in range(gradient_workers.STEPS):
            assert intake.wait(2, timeout=120)
            intake.apply(optimizer)
        assert [worker.wait(timeout=60) for worker in workers] == [0, 0]
        assert server.counters["accepted"] == 2 * gradient_workers.STEPS
    assert single.paths().keys() == optimizer.paths().keys()
    for one, other in ((alone, together), (single, optimizer)):
        for path, variable in one.paths().items():
            assert variable.numpy().tobytes() == other.paths()[path].numpy().tobytes(), path


def test_arrays_of_any_dtype_and_shape_come_over_as_they_are() -> None:
    values = {
        "scalar": jnp.float32(1.5), "empty": jnp.zeros([3, 0]), "half": jnp.array([1.5, -2], jnp.float16),
        "brain": jnp.array([[1.5], [3.0]], jnp.bfloat16), "small": jnp.array([1.5], jnp.float8_e4m3fn),
        "count": jnp.array([1, -2], jnp.int32), "truth": jnp.array([True, False]), "key": jnp.array([7], jnp.uint32),
        "odd 'path'\n": jnp.array([1.0]), "snake 🐍": jnp.array([2.0]),
    }  # fmt: skip
    variables = {
        name: mk.Variable(value, trainable=name in ("half", "brain", "scalar", "empty"))
        for name, value in values.items()
    }
    intake = Intake(variables)
    with GradientServer(intake, SECRET) as server, GradientClient(server.address, SECRET) as client:
        version, arrays = client.fetch()
        assert (version, arrays.keys()) == (0, variables.keys())
        for name, array in arrays.items():
            expected = variables[name].numpy()
            assert (array.dtype, array.shape, array.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())
            array[...] = 0  # it is the client's own
        trained = {name: variables[name].numpy() for name in intake.forms}
        assert client.submit(trained, 2, "a", 0)
    for name, array in intake.total().gradients.items():
        assert array.tobytes() == variables[name].numpy().tobytes()


def test_large_weights_reach_a_client_that_reads_slowly() -> None:
    w = mk.Variable(jnp.arange(2_000_000.0), name="w")
    with GradientServer(Intake([w]), SECRET) as server, written(server) as (slow, author):
        slow.sendall(author.hello)
        assert received(slow, 32) == author.expected
        for _ in range(3):  # asked for three times at once, and not read
            slow.sendall(author.seal(ask()))
        with GradientClient(server.address, SECRET) as client:
            assert client.fetch().arrays["w"].tobytes() == w.numpy().tobytes()
        for _ in range(3):
            start = received(slow, 16)
            size = sum(int.from_bytes(part, "little") for part in (start[4:8], start[8:]))
            answer = start + received(slow, size + 32)
            assert author.open(answer) == {"kind": "weights", "version": 0}
            assert answer[-32 - 8_000_000 : -32] == w.numpy().tobytes()


def ask() -> bytes:
    return prefix(len(ASKS), 0) + ASKS


def test_receipts_say_why(server: GradientServer) -> None:
    with GradientClient(server.address, SECRET) as client:
        assert client.submit(ONES, 3, "a", 0)
        assert client.submit(ONES, 3, "a", 0).reason == "'a' has already contributed to version 0: each id counts once"
        assert client.submit(ONES, 3, "b", 1).reason.startswith("version 1 is not there yet")
        assert client.submit({"b": ONES["b"]}, 3, "b", 0).reason.startswith(
            "these gradients do not fit the intake: missing w"
        )
        assert client.submit(ONES, float("nan"), "b", 0).reason.startswith("weight=nan: expected how many samples")
        assert client.submit({**ONES, "b": np.array([None, 1])}, 1, "b", 0).reason.startswith(
            "b holds object, which is not sent: give arrays of bool, int8"
        )
    assert server.counters == {"connections": 1, "accepted": 1, "refused": 3}


def test_a_client_waits_for_the_next_version(server: GradientServer, intake: Intake) -> None:
    with GradientClient(server.address, SECRET) as client:
        assert client.fetch().version == 0
        with pytest.raises(
            TimeoutError, match=r"^the gradient server at 127.0.0.1:\d+ has version 0, and no later one"
        ):
            client.fetch(after=0, timeout=0.01)
        client.submit(ONES, 1, "a", 0)
        timer = threading.Timer(0.05, intake.apply, [mk.optimizers.SGD(1.0)])
        timer.start()
        version, arrays = client.fetch(after=0)
        timer.join()
        assert version == 1
        assert arrays["b"].tolist() == [-1, -1]


def test_what_cannot_be_written_is_not_accepted(
    server: GradientServer, intake: Intake, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with GradientClient(server.address, SECRET) as client:
        with monkeypatch.context() as patch:
            patch.setattr(intake, "submit", failing)
            reason = client.submit(ONES, 1, "a", 0).reason
        assert reason == "the contribution could not be written: No space left on device"
        assert client.submit(ONES, 1, "a", 0)


def test_a_mistake_of_ours_ends_one_connection_and_not_the_server(
    server: GradientServer, intake: Intake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with GradientClient(server.address, SECRET) as client, monkeypatch.context() as patch:
        patch.setattr(intake, "submit", lambda *arguments: 1 / 0)
        with pytest.raises(ConnectionError):
            client.submit(ONES, 1, "a", 0)
    assert server.counters["failed"] == 1
    assert "an answer failed" in caplog.text and "ZeroDivisionError" in caplog.text
    with GradientClient(server.address, SECRET) as client:
        assert client.submit(ONES, 1, "a", 0)


def test_a_server_that_hears_that_it_is_closed_before_it_is_rung_for_is_closed(
    server: GradientServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    bell, thread = server._bell, server._thread

    class Late:
        def send(self, data: bytes) -> None:
            with contextlib.suppress(OSError):
                GradientClient(server.address, SECRET).close()  # wakes the thread, which sees the mark and ends
            thread.join()
            bell.send(data)

        def close(self) -> None:
            bell.close()

    monkeypatch.setattr(server, "_bell", Late())
    server.close()
    assert not thread.is_alive()


# Who is refused.


def test_a_client_without_the_secret_is_refused(server: GradientServer, caplog: pytest.LogCaptureFixture) -> None:
    message = r"^the gradient server at 127.0.0.1:\d+ has ended the connection: is the secret its own\?$"
    with pytest.raises(PermissionError, match=message):
        GradientClient(server.address, bytes(32))
    counted(server, "unauthenticated")
    assert "refused as unauthenticated: a client that does not know the secret" in caplog.text


def test_a_server_without_the_secret_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend() -> None:
            other, _ = listener.accept()
            with other:
                other.sendall(GREETING + bytes(32))
                received(other, 64)
                other.sendall(bytes(32))

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(PermissionError, match=r"does not know the secret$"):
            GradientClient(listener.getsockname(), SECRET)
        thread.join()


def test_something_else_at_the_address_is_no_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pretend() -> None:
            other, _ = listener.accept()
            with other:
                other.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 9)

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(PermissionError, match=r"is none: it says b'HTTP/1.1 400 Bad Reque'$"):
            GradientClient(listener.getsockname(), SECRET)
        thread.join()


@pytest.mark.parametrize(
    ("secret", "error", "message"),
    [
        (
            "a text of more than sixteen",
            TypeError,
            r"^secret is a str: expected bytes, such as secrets.token_bytes\(32\)$",
        ),
        (
            b"fifteen bytes..",
            ValueError,
            r"^secret has 15 bytes: expected at least 16, such as secrets.token_bytes\(32\)$",
        ),
    ],
)
def test_a_secret_that_is_none_is_refused(secret: Any, error: type[Exception], message: str, intake: Intake) -> None:
    with pytest.raises(error, match=message):
        GradientServer(intake, secret)
    with pytest.raises(error, match=message):
        GradientClient(("127.0.0.1", 1), secret)


def test_no_secret_is_logged(server: GradientServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for secret in (SECRET, bytes(16)):
        with contextlib.suppress(PermissionError), GradientClient(server.address, secret) as client:
            client.submit({}, 1, "a", 0)
    with written(server) as (client, author):
        client.sendall(author.hello + b"nonsense" * 9)
        counted(server, "malformed")
    assert len(caplog.records) == 3
    text = caplog.text + repr(server) + repr(vars(server).keys())
    assert SECRET.decode() not in text and SECRET.hex() not in text and repr(SECRET) not in text


def prefix(header: int, body: int) -> bytes:
    return b"mkg1" + header.to_bytes(4, "little") + body.to_bytes(8, "little")


GOOD = submission("a", 0, 1, ONES)
BROKEN: dict[str, tuple[str, Callable[[Author], bytes]]] = {
    "no magic": ("malformed", lambda author: b"GET / HTTP/1.1\r\n\r\n"),
    "a body that is too long": ("oversized", lambda author: prefix(10, 25)),
    "a header that is too long": ("oversized", lambda author: prefix(2**20, 0)),
    "no mac": ("unauthenticated", lambda author: GOOD + bytes(32)),
    "a mac of another place": ("unauthenticated", lambda author: (author.seal(b""), author.seal(GOOD))[1]),
    "no json": ("malformed", lambda author: author.seal(prefix(2, 0) + b"{]")),
    "more than its arrays": ("malformed", lambda author: author.seal(prefix(len(ASKS), 4) + ASKS + bytes(4))),
    "nothing that there is": ("malformed", lambda author: author.seal(GOOD.replace(b"submit", b"weight"))),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_no_message_is_refused_counted_and_logged_and_the_server_goes_on(
    case: str, server: GradientServer, intake: Intake, caplog: pytest.LogCaptureFixture
) -> None:
    kind, write = BROKEN[case]
    with written(server) as (client, author):
        client.sendall(author.hello)
        assert received(client, 32) == author.expected
        client.sendall(write(author))
        with contextlib.suppress(ConnectionResetError):  # where it had not read all
            assert received(client, 1) == b""
    counted(server, kind)
    assert f"refused as {kind}: " in caplog.text
    assert intake.keys == ()
    with GradientClient(server.address, SECRET) as good:
        assert good.submit(ONES, 1, "a", 0)


def test_gradients_larger_than_the_variables_are_refused_before_they_are_read(
    server: GradientServer, intake: Intake
) -> None:
    with GradientClient(server.address, SECRET) as client, pytest.raises(ConnectionError):
        client.submit({**ONES, "b": np.zeros([5_000_000], np.float32)}, 1, "a", 0)
    counted(server, "oversized")
    assert intake.keys == ()


def test_more_clients_than_there_may_be_are_refused(intake: Intake) -> None:
    with GradientServer(intake, SECRET, max_connections=2) as server:
        with GradientClient(server.address, SECRET), GradientClient(server.address, SECRET) as second:
            with pytest.raises(ConnectionError, match="has ended the connection"):
                GradientClient(server.address, SECRET)
            assert second.fetch().version == 0
        counted(server, "crowded")
        with retried(server) as third:
            assert third.fetch().version == 0


def retried(server: GradientServer) -> GradientClient:
    """Returns a client as soon as the server has noticed that others are gone."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return GradientClient(server.address, SECRET)
        except ConnectionError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize("said", [0, 1, 40, 64, 65, 100])
def test_who_is_slow_is_let_go(said: int, intake: Intake) -> None:
    with GradientServer(intake, SECRET, timeout=0.2, idle_timeout=0.2) as server:
        with written(server) as (client, author):
            client.sendall((author.hello + author.seal(GOOD))[:said])
            rest = received(client, 1000)  # until the server ends it
            assert rest == (author.expected if said >= 64 else b"")
        counted(server, "timed out")
    assert intake.keys == ()


def test_some_bytes_now_and_then_do_not_keep_a_connection(intake: Intake) -> None:
    with GradientServer(intake, SECRET, timeout=0.3) as server, written(server) as (client, author):
        client.sendall(author.hello)
        assert received(client, 32) == author.expected
        with pytest.raises(OSError):  # before all is said
            for byte in GOOD:
                client.sendall(bytes([byte]))
                time.sleep(0.02)
        counted(server, "timed out")


@pytest.mark.parametrize("name", ["max_connections", "timeout", "idle_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), True, "3"])
def test_limits_that_are_none_are_refused(name: str, value: Any, intake: Intake) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=.*: expected a positive number$"):
        GradientServer(intake, SECRET, **{name: value})


# The end.


def test_closing_ends_connections_and_frees_the_address(intake: Intake) -> None:
    with GradientServer(intake, SECRET) as server:
        client = GradientClient(server.address, SECRET)
        assert client.fetch().version == 0
    server.close()  # again
    with pytest.raises(ConnectionError, match=r"^the gradient server at 127.0.0.1:\d+ has (ended|not)|reset|Broken"):
        client.fetch()
    with pytest.raises(OSError):
        GradientClient(server.address, SECRET)
    with GradientServer(intake, SECRET, server.address) as again, GradientClient(again.address, SECRET) as client:
        assert client.fetch().version == 0


def test_ctrl_c_leaves_no_thread(intake: Intake) -> None:
    with pytest.raises(KeyboardInterrupt), GradientServer(intake, SECRET):
        raise KeyboardInterrupt


def test_a_process_ends_with_a_server_that_nobody_closes() -> None:
    program = (
        "import modulekit as mk, scenarios\n"
        "intake = scenarios.aggregation.Intake([mk.Variable(1.0, name='w')])\n"
        "server = scenarios.aggregation.GradientServer(intake, bytes(16))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=HERE.parent, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
