"""Requests made in worker threads: order, bounds, errors, cancelling, and an end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwenvl.engine.intake import Intake, default_workers
from qwenvl.engine.request import Request


def request(number: int = 0) -> Request:
    return Request([number], torch.zeros(3, 1, dtype=torch.long), 0)


class Gate:
    """prepare() functions that wait until they are let through, and note in which order they began."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self._open: dict[int, threading.Event] = {}

    def prepare(self, number: int) -> Callable[[], Request]:
        self._open[number] = threading.Event()

        def make() -> Request:
            self.begun.append(number)
            assert self._open[number].wait(10)
            return request(number)

        return make

    def let(self, *numbers: int) -> None:
        for number in numbers:
            self._open[number].set()


def soon(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def collect(intake: Intake, count: int) -> list[tuple[str, Any]]:
    got: list[tuple[str, Any]] = []
    while len(got) < count:
        assert intake.wait(10)
        got += intake.ready()
    return got


def test_requests_come_out_as_they_are_finished() -> None:
    gate = Gate()
    with Intake(2) as intake:
        for i in range(2):
            intake.submit(gate.prepare(i), f"r{i}")
        soon(lambda: len(gate.begun) == 2)
        assert (intake.ready(), intake.pending, intake.wait(0.001)) == ([], 2, False)
        gate.let(1)
        ((first, made),) = collect(intake, 1)
        assert (first, made.prompt_ids) == ("r1", [1])
        gate.let(0)
        assert collect(intake, 1)[0][0] == "r0"
        assert (intake.pending, intake.ready(), intake.wait()) == (0, [], False), "nothing to wait for"


def test_an_error_is_that_of_its_request() -> None:
    def fails() -> Request:
        raise ValueError("no such picture")

    def exits() -> Request:
        sys.exit("enough")

    with Intake(1) as intake:
        for i, prepare in enumerate((fails, exits, request)):
            intake.submit(prepare, str(i))
        got = dict(collect(intake, 3))
    assert isinstance(got["0"], ValueError)
    assert isinstance(got["1"], RuntimeError)
    assert str(got["1"]) == "SystemExit: enough"
    assert isinstance(got["2"], Request)


def test_priority_then_arrival() -> None:
    gate = Gate()
    with Intake(1, in_flight=9) as intake:
        for number, priority in ((0, 0), (1, 0), (2, 5), (3, 0), (4, 5), (5, -1)):
            intake.submit(gate.prepare(number), str(number), priority)
            soon(lambda: gate.begun == [0])
        gate.let(*range(6))
        assert [id for id, _ in collect(intake, 6)] == ["0", "2", "4", "1", "3", "5"]


def test_few_are_in_flight_however_many_wait() -> None:
    gate = Gate()
    with Intake(2, in_flight=3) as intake:
        for i in range(50):
            intake.submit(gate.prepare(i), str(i))
        gate.let(*range(50))
        soon(lambda: len(gate.begun) == 3)
        time.sleep(0.02)
        assert (len(gate.begun), intake.pending) == (3, 50), "made and not taken counts"
        assert len(intake.ready(most=1)) == 1
        soon(lambda: len(gate.begun) == 4)
        time.sleep(0.02)
        assert len(gate.begun) == 4
        assert len(collect(intake, 49)) == 49
        assert sorted(gate.begun) == list(range(50))


def test_cancelling() -> None:
    gate = Gate()
    with Intake(1, in_flight=9) as intake:
        for i in range(4):
            intake.submit(gate.prepare(i), str(i))
        soon(lambda: gate.begun == [0])
        assert intake.cancel("2"), "waiting"
        assert intake.cancel("0"), "being made"
        assert not intake.cancel("0")
        assert intake.pending == 2
        intake.submit(gate.prepare(10), "0")  # the id is free again
        gate.let(0, 1, 3)
        assert [id for id, _ in collect(intake, 2)] == ["1", "3"]
        gate.let(10)
        intake.wait(10)
        assert intake.cancel("0"), "made"
        assert (intake.ready(), intake.pending) == ([], 0)
    assert gate.begun == [0, 1, 3, 10]


def test_what_is_refused() -> None:
    gate = Gate()
    with Intake(1) as intake:
        intake.submit(gate.prepare(0), "a")
        with pytest.raises(ValueError, match="'a' is in use"):
            intake.submit(request, "a")
        gate.let(0)
    with pytest.raises(RuntimeError, match="intake is closed"):
        intake.submit(request, "b")
    for wrong in ({"workers": 0}, {"workers": 1, "in_flight": 0}):
        with pytest.raises(ValueError, match="at least 1 each"):
            Intake(**wrong)


def test_close_ends_the_threads_and_drops_what_waits() -> None:
    def mine() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("qwenvl-intake")]

    gate, before = Gate(), len(mine())
    intake = Intake(2)
    assert len(mine()) == before, "no thread before there is work"
    for i in range(20):
        intake.submit(gate.prepare(i), str(i))
    soon(lambda: len(gate.begun) == 2)
    assert not any(t.daemon for t in mine())
    waiter = threading.Thread(target=intake.wait)
    waiter.start()
    threading.Timer(0.05, gate.let, [0, 1]).start()
    intake.close()
    waiter.join(10)
    assert not waiter.is_alive(), "whoever waits is woken"
    assert len(mine()) == before
    assert (sorted(gate.begun), intake.pending, intake.ready()) == ([0, 1], 0, [])
    intake.close()


def test_torch_is_single_threaded_in_workers_only() -> None:
    seen: list[int] = []

    def prepare() -> Request:
        seen.append(torch.get_num_threads())
        return request()

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with Intake(3) as intake:
            for i in range(12):
                intake.submit(prepare, str(i))
            collect(intake, 12)
        assert seen == [1] * 12
        assert torch.get_num_threads() == 2
        other = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert seen[-1] == 2, "threads that begin later are as before"
    finally:
        torch.set_num_threads(before)


def test_default_workers() -> None:
    assert 1 <= default_workers() <= 4


def test_from_many_threads_nothing_is_lost() -> None:
    with Intake(3) as intake:

        def feed(base: int) -> None:
            for i in range(100):
                intake.submit(lambda n=base + i: request(n), str(base + i), i % 3)

        feeders = [threading.Thread(target=feed, args=(base,)) for base in (0, 100, 200)]
        for feeder in feeders:
            feeder.start()
        got = collect(intake, 300)
        assert sorted(int(id) for id, _ in got) == list(range(300))
        assert all(made.prompt_ids == [int(id)] for id, made in got)


def test_an_open_intake_does_not_keep_the_interpreter() -> None:
    code = (
        "import time\nfrom qwenvl.engine.intake import Intake\n"
        "intake = Intake(2)\n"
        "[intake.submit(lambda: time.sleep(0.2), str(i)) for i in range(1000)]\n"
        "print('end', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr.strip()) == (0, "end", "")
