"""What checks say. A check is a function Case -> Outcome; what it raises is sorted here into findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from qwenvl.doctor.case import Case

Verdict = Literal["ok", "warning", "fault", "skipped"]
ORDER: tuple[Verdict, ...] = ("skipped", "ok", "warning", "fault")  # from harmless to bad


class Unavailable(Exception):  # noqa: N818 - it is no error
    """Raised by a check that cannot look: it is skipped, for this reason."""


@dataclass(frozen=True)
class Outcome:
    """verdict, what was found in a sentence, and what to do about it ("" where there is nothing to do)."""

    verdict: Verdict
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Finding:
    """An outcome under the name of its check, with what that looked at."""

    check: str
    looked_at: str
    verdict: Verdict
    found: str
    advice: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Check:
    """One check. name: in a word or two. looks_at: in a line. long: left out by --quick, as it reads all weights or
    computes for long."""

    name: str
    looks_at: str
    run: Callable[[Case], Outcome]
    long: bool = False


@dataclass
class Notes:
    """Collects what a check finds, and makes one outcome of it: the worst verdict, and what led to it."""

    said: list[Outcome] = field(default_factory=list)

    def fault(self, found: str, advice: str) -> None:
        self.said.append(Outcome("fault", found, advice))

    def warn(self, found: str, advice: str) -> None:
        self.said.append(Outcome("warning", found, advice))

    def note(self, found: str) -> None:
        """Something worth saying that is fine."""
        self.said.append(Outcome("ok", found))

    def outcome(self, otherwise: str) -> Outcome:
        """otherwise: what is said when nothing is wrong, before the notes."""
        worst: Verdict = max((one.verdict for one in self.said), key=ORDER.index, default="ok")
        if worst == "ok":
            return Outcome("ok", "; ".join([otherwise, *(one.found for one in self.said)]))
        bad = [one for one in self.said if one.verdict in ("warning", "fault")]
        bad.sort(key=lambda one: -ORDER.index(one.verdict))
        return Outcome(worst, "; ".join(one.found for one in bad), "; ".join(dict.fromkeys(one.advice for one in bad)))


def some(names: list[Any], most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {more} more" if more > 0 else "")


def one_line(error: BaseException) -> str:
    """What an error says, on one line, with its kind where it says little."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError | OSError) and text else f"{type(error).__name__}: {text}"
