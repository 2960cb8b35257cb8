"""Answers of runners -> figures. An answer is read together with the command that it answers."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Answer = Mapping[str, Any]
Command = Mapping[str, Any]
Reader = Callable[[Command, Answer], dict[str, float]]


@dataclass(frozen=True)
class Metric:
    """A figure of a phase. scale: from seconds, tokens a second or bytes to the unit shown."""

    label: str
    unit: str
    higher_is_better: bool = False
    scale: float = 1.0


METRICS = {
    "patches": Metric("picture to patches", "ms", scale=1e3),
    "tower": Metric("vision tower", "s"),
    "prefill": Metric("prefill", "s"),
    "first": Metric("first token", "s"),
    "decode": Metric("decode", "tok/s", True),
    "total": Metric("all tokens, prompts included in the time", "tok/s", True),
    "wait": Metric("mean wait for the first token", "s"),
    "second_first": Metric("second turn, first token", "s"),
    "second": Metric("second turn, whole answer", "s"),
    "start": Metric("process start to first token", "s"),
    "memory": Metric("peak memory", "GB", scale=1e-9),
    "step": Metric("one step of decoding", "ms", scale=1e3),
}


def times_of(answer: Answer) -> list[float]:
    """When the tokens came. Where only the first and the end are known, the others are spread evenly between."""
    if "times" in answer:
        return list(answer["times"])
    first, end, count = float(answer["first"]), float(answer["end"]), int(answer["tokens"])
    return [first + (end - first) * i / max(1, count - 1) for i in range(count)]


def seconds_as(name: str) -> Reader:
    """The seconds of an answer as a metric of this name."""
    return lambda command, answer: {name: float(answer["seconds"])}


def of_answer(command: Command, answer: Answer) -> dict[str, float]:
    """One request: time to its first token, and the rate of the others."""
    times = times_of(answer)
    figures = {"first": times[0]}
    if len(times) > 1:
        figures["decode"] = (len(times) - 1) / (times[-1] - times[0])
    return figures


def of_batch(command: Command, answer: Answer) -> dict[str, float]:
    """Requests that came together. decode: while all of them were decoding (left out where they never were)."""
    every = [times_of(one) for one in answer["requests"]]
    figures = {"total": _rate(every)}
    start, stop = max(times[0] for times in every), min(times[-1] for times in every)
    if start < stop:
        figures["decode"] = sum(start < at <= stop for times in every for at in times) / (stop - start)
    return figures


def of_stream(command: Command, answer: Answer) -> dict[str, float]:
    """Requests that arrived over time. wait: from a request's own arrival."""
    every = [times_of(one) for one in answer["requests"]]
    waits = [times[0] - asked["at"] for times, asked in zip(every, command["requests"], strict=True)]
    return {"total": _rate(every), "wait": statistics.fmean(waits)}


def of_chat(command: Command, answer: Answer) -> dict[str, float]:
    times = times_of(answer["turns"][1])
    return {"second_first": times[0], "second": times[-1]}


def of_step(command: Command, answer: Answer) -> dict[str, float]:
    """Seconds in which each sequence of the batch gets one token."""
    return {"step": answer["seconds"] / answer["tokens"] * command["batch"]}


def of_start(command: Command, answer: Answer) -> dict[str, float]:
    return {"start": float(answer["since_start"])}


def of_memory(command: Command, answer: Answer) -> dict[str, float]:
    return {"memory": float(answer["peak_bytes"])}


def _rate(every: list[list[float]]) -> float:
    return sum(map(len, every)) / max(times[-1] for times in every)
