"""100,000 messages of every kind: an intake takes exactly those that are contributions, and nothing else changes it."""

import copy
import json
import logging
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gradient_wire import GREETING, SECRET, Author, frame, meant, net, submission

import modulekit as mk
from scenarios.aggregation import GradientClient, GradientServer, Intake
from scenarios.aggregation.frames import Refusal
from scenarios.aggregation.session import Session, limits_of

MESSAGES, PARTS = 100_000, 10
CHUNK = 2**16  # bytes that are fed in at a time
Bits = dict[tuple[int, str], tuple[float, bytes, bytes]]

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-310, 1e308, 1e999, float("nan"), "", "0", "id",
    "x" * 201, "\ud800", "\x00", "a\nb", "float32", "float64", "object", "mask", [], {}, [[]], [0], [2, 2], [2**31],
    [0, 2**30, 2**30, 2**30], [-1], [True], ["2"], {"a": 1}, [[[[]]]], "w", "b", "submit", "weights", "receipt",
]  # fmt: skip


def containers(said: Any) -> Iterator[Any]:
    """Yields the objects and lists in some JSON."""
    if isinstance(said, dict | list):
        yield said
        for inner in said.values() if isinstance(said, dict) else said:
            yield from containers(inner)


class Fuzz:
    """One stream of messages to an intake in memory.

    Args:
      seed: of all that is random.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.intake = Intake(net(), max_staleness=1)
        self.limits = limits_of(self.intake)
        self.optimizer = mk.optimizers.SGD(0.1)
        self.counters: Counter[str] = Counter()
        self.expected: Bits = {}
        self.seen: set[tuple[int, str]] = set()
        self.count = self.longest = 0
        self.connect()

    def connect(self) -> None:
        """Begins a new session, which knows its client."""
        self.session = Session(self.intake, SECRET, self.counters, self.limits, nonce=self.rng.randbytes(32))
        self.author = Author(self.session.greeting[len(GREETING) :], own=self.rng.randbytes(32))
        assert self.deliver(self.author.hello) == [self.author.expected]

    def deliver(self, data: bytes) -> list[bytes] | None:
        """Feeds bytes in as a connection would, in pieces; returns the answers, None if the session is over."""
        answers, place = [], 0
        while place < len(data):
            size = self.rng.choice([1, 7, 40, CHUNK, CHUNK, CHUNK])
            self.session.feed(data[place : place + size])
            place += size
            try:
                while (answer := self.session.answer()) is not None:
                    answers.append(answer)
            except Refusal as refusal:
                self.counters[refusal.kind] += 1
                return None
            self.longest = max(self.longest, self.session.pending)
        return answers

    # What is said.

    def valid(self) -> bytes:
        """Returns a contribution that is taken, but for its id and version now and then."""
        rng = self.rng
        arrays = {
            path: np.array([rng.uniform(-9, 9) for _ in range(size)], np.float32).reshape(shape)
            for path, size, shape in (("b", 2, [2]), ("w", 4, [2, 2]))
        }
        version = self.intake.version - (rng.random() < 0.1)
        return submission(f"id {rng.randrange(40)}", version, rng.choice([1, 2, 0.5, 17]), arrays)

    def mutated(self, data: bytes) -> bytes:
        """Returns bytes with a few of them changed, taken out, put in, doubled or exchanged."""
        rng, changed = self.rng, bytearray(data)
        for _ in range(rng.choice([1, 1, 2, 5])):
            place = rng.randrange(len(changed)) if changed else 0
            what = rng.randrange(5)
            if what == 0 and changed:
                changed[place] ^= 1 << rng.randrange(8)
            elif what == 1:
                del changed[place : place + rng.choice([1, 4, 50])]
            elif what == 2:
                changed[place:place] = rng.randbytes(rng.choice([1, 4, 50]))
            elif what == 3:
                changed[place:place] = changed[place : place + rng.choice([2, 30])]
            elif changed:
                changed[place] = rng.choice(b'0123456789"{}[],:-.eE\\\x00\xff')
        return bytes(changed)

    def odd(self) -> bytes:
        """Returns a frame whose header is some JSON, or nearly so."""
        rng, good = self.rng, self.valid()
        _, length, _ = struct.unpack_from("<4sIQ", good)
        said, body = json.loads(good[16 : 16 + length]), good[16 + length :]
        for _ in range(rng.choice([0, 1, 1, 2])):
            place = rng.choice(list(containers(said)))
            key = rng.choice([*place, "more"]) if isinstance(place, dict) else rng.randrange(len(place) + 1)
            if key == "more" or key == len(place):
                place.update(more=1) if isinstance(place, dict) else place.append(copy.deepcopy(rng.choice(ODD)))
            elif rng.random() < 0.2:
                del place[key]
            else:
                place[key] = copy.deepcopy(rng.choice(ODD))
        text = json.dumps(said).encode()
        broken = rng.random()
        if broken < 0.03:
            text = b"[" * rng.choice([10, 3000]) + text
        elif broken < 0.06:
            text = text.replace(b'"weight"', b'"weight": 1, "weight"')
        elif broken < 0.09:
            text = text.decode().encode("utf-16")
        elif broken < 0.12:
            text = text.replace(b": 1", b": " + b"9" * rng.choice([30, 400, 5000]))
        if rng.random() < 0.2:
            body = self.mutated(body)
        return frame(text, body)

    # What must come of it.

    def say(self, content: bytes) -> None:
        """Sends a frame with its right MAC: it counts if it is a contribution, and not yet there."""
        contribution = meant(content)
        intake, answers = self.intake, self.deliver(self.author.seal(content))
        key = None if contribution is None else (contribution[1], contribution[0])
        is_new = key is not None and key not in self.seen and intake.version - 1 <= key[0] <= intake.version
        if answers:
            assert len(answers) == 1
            fields = self.author.open(answers[0])
            if fields["kind"] == "receipt":
                assert fields["accepted"] is is_new
                assert bool(fields["reason"]) is not is_new
        if is_new and contribution is not None and key is not None:
            assert answers
            _, _, weight, arrays = contribution
            self.expected[key] = (weight, arrays["b"].tobytes(), arrays["w"].tobytes())
            self.seen.add(key)
        if not answers:  # refused, or not whole
            self.connect()

    def whisper(self, data: bytes) -> None:
        """Sends bytes that must not count, and nothing is answered; then the connection is over."""
        assert not self.deliver(data)
        self.connect()

    def stranger(self) -> None:
        """A client that does not know the secret."""
        rng = self.rng
        self.session = Session(self.intake, SECRET, self.counters, self.limits, nonce=rng.randbytes(32))
        nonce = self.session.greeting[len(GREETING) :]
        hello = rng.choice([
            rng.randbytes(rng.randrange(200)), bytes(64), Author(nonce, SECRET[:-1]).hello, Author(bytes(32)).hello,
            self.mutated(Author(nonce).hello)[:64], self.author.hello, nonce + Author(nonce).expected,
        ])  # fmt: skip
        self.whisper(hello + Author(nonce).seal(self.valid()))

    def other_prefix(self) -> None:
        """A prefix that promises more, or less, than there is."""
        good = self.valid()
        lengths = [self.rng.choice([0, 1, 2**16, 2**31, 2**32 - 1]), self.rng.choice([0, 24, 25, 2**40, 2**64 - 1])]
        self.whisper(struct.pack("<4sIQ", self.rng.choice([b"mkg1", b"mkg2"]), *lengths) + good[16:])

    def disordered(self) -> None:
        """The second of two messages first."""
        self.author.seal(self.valid())
        self.whisper(self.author.seal(self.valid()))

    def replayed(self) -> None:
        """A message of another connection, or of this one again."""
        contribution = self.author.seal(frame(b'{"fields": {"kind": "weights", "after": 99}, "arrays": []}', b""))
        if self.rng.random() < 0.5:
            answers = self.deliver(contribution)
            assert answers is not None and self.author.open(answers[0])["kind"] == "weights"
        else:
            self.connect()
        self.whisper(contribution)

    def message(self) -> None:
        """One message of any kind."""
        rng = self.rng
        kinds: list[Callable[[], None]] = [
            lambda: self.say(self.valid()),
            lambda: self.say(self.odd()),
            lambda: self.say(self.odd()),
            lambda: self.say(self.mutated(self.valid())),
            lambda: self.whisper(self.unlike(self.author.seal(self.valid()))),
            lambda: self.whisper(self.author.seal(self.valid())[: -rng.randrange(1, 100)]),
            lambda: self.whisper(rng.randbytes(rng.randrange(1, 300))),
            self.stranger, self.other_prefix, self.disordered, self.replayed,
        ]  # fmt: skip
        rng.choice(kinds)()
        self.count += 1
        self.check()
        if len(self.expected) >= 30:
            self.intake.apply(self.optimizer)
            self.expected = {}

    def unlike(self, data: bytes) -> bytes:
        """Returns bytes that differ, and are not the same with more behind."""
        while (changed := self.mutated(data)).startswith(data):
            pass
        return changed

    def check(self) -> None:
        held = self.intake._held
        assert held.keys() == self.expected.keys()
        for key, contribution in held.items():
            arrays = contribution.gradients
            assert (contribution.weight, arrays["b"].tobytes(), arrays["w"].tobytes()) == self.expected[key]


@pytest.mark.parametrize("part", range(PARTS))
def test_100_000_messages_change_nothing_that_they_should_not(part: int) -> None:
    logging.getLogger("scenarios").disabled = True  # it would write a line for each
    try:
        fuzz = Fuzz(part)
        while fuzz.count < MESSAGES // PARTS:
            fuzz.message()
    finally:
        logging.getLogger("scenarios").disabled = False
    assert fuzz.longest < 2 * CHUNK
    assert fuzz.intake.version > 5
    assert (
        min(fuzz.counters[kind] for kind in ("accepted", "refused", "malformed", "oversized", "unauthenticated")) > 300
    )


# Over a real socket.


@pytest.fixture
def server() -> Iterator[GradientServer]:
    before = threading.active_count()
    with GradientServer(Intake(net()), SECRET, max_connections=64, timeout=2.0) as started:
        yield started
    assert threading.active_count() == before


def test_hundreds_of_connections_that_misbehave_leave_the_server_as_it_was(server: GradientServer) -> None:
    rng, open_ones = random.Random(0), []
    for index in range(400):
        with socket.create_connection(server.address, timeout=10) as client:
            greeting = b""
            while len(greeting) < len(GREETING) + 32:
                more = client.recv(100)
                if not more:
                    break
                greeting += more
            author = Author(greeting[len(GREETING) :])
            good = submission("id", 0, 1, {"b": np.ones([2], np.float32), "w": np.ones([2, 2], np.float32)})
            data = [
                b"", rng.randbytes(200), author.hello[:50], author.hello + good + bytes(32),
                author.hello + author.seal(good)[:-1], author.hello + struct.pack("<4sIQ", b"mkg1", 9, 2**62),
                author.hello + author.seal(good[:-4]) + bytes(100), Author(bytes(32)).hello + author.seal(good),
            ][index % 8]  # fmt: skip
            try:
                client.sendall(data)
            except OSError:
                continue
            if index % 20 == 0:
                open_ones.append(client.dup())  # half open, until the server's patience ends
    with GradientClient(server.address, SECRET) as client:
        assert client.fetch().version == 0
        arrays = {"b": np.ones([2], np.float32), "w": np.ones([2, 2], np.float32)}
        assert client.submit(arrays, 1, "only", 0)
    assert server.counters["connections"] == 401
    assert server.counters["accepted"] == 1
    assert "failed" not in server.counters and "crowded" not in server.counters
    for kind in ("malformed", "oversized", "unauthenticated"):
        assert server.counters[kind] > 20
    deadline = time.monotonic() + 60
    while server.counters.get("timed out", 0) < len(open_ones):  # no client has ended these
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for client in open_ones:
        client.close()
