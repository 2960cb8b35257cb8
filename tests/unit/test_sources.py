"""What the verbs take: names, folders, patterns and addresses -> a list; and the loop over it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from qwenvl.cli.sources import Progress, Record, each, expand, natural, outputs


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as people have them, and the current one."""
    for name in (
        "page10.png", "page2.PNG", "page1.jpg", "notes.txt", ".hidden.png", "clip.mp4", "scan.pdf", "a[1].png",
        "deep/er/x.webp", "deep/page3.png", ".git/icon.png", "empty/readme.md",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("sources", "kinds", "found"),
    [
        (["page1.jpg"], ["image"], ["page1.jpg"]),
        (["notes.txt"], ["image"], ["notes.txt"]),  # a file is what it contains
        (["a[1].png"], ["image"], ["a[1].png"]),  # a name before it is a pattern
        (["deep"], ["image"], ["deep/er/x.webp", "deep/page3.png"]),
        (["page*"], ["image"], ["page1.jpg", "page2.PNG", "page10.png"]),
        (["*.pdf", "*.mp4"], ["pdf", "video"], ["scan.pdf", "clip.mp4"]),
        (["**/*.png"], ["image"], ["a[1].png", "deep/page3.png", "page10.png"]),
        (["de*"], ["image"], ["deep/er/x.webp", "deep/page3.png"]),
        (["page1.jpg", "./page1.jpg", "page*.jpg"], ["image"], ["page1.jpg"]),
        (["scan.pdf", "page1.jpg"], ["image"], ["scan.pdf", "page1.jpg"]),  # one of another kind fails alone
        (["https://example.com/a?b=c.mp4", "data:image/png;base64,AA=="], ["image"], None),
        (["file:///x/y.png", "HTTP://example.com/x"], ["image"], None),
    ],
)
def test_what_names_stand_for(tree: Path, sources: list[str], kinds: list, found: list[str] | None) -> None:
    assert expand(sources, kinds) == (sources if found is None else found)


def test_a_folder_gives_its_kinds_in_natural_order(tree: Path) -> None:
    found = ["a[1].png", "deep/er/x.webp", "deep/page3.png", "page1.jpg", "page2.PNG", "page10.png"]
    assert expand(["."]) == [f"./{name}" for name in found]
    assert expand([str(tree)], ["pdf"]) == [f"{tree}/scan.pdf"]


def test_a_link_that_leads_back_up_does_not_go_round(tree: Path) -> None:
    (tree / "deep" / "up").symlink_to(tree)
    assert len(expand(["."])) == 6


@pytest.mark.parametrize(
    ("sources", "kinds", "says"),
    [
        (["gone.png"], ["image"], r"gone\.png does not exist: expected a picture, a folder or a pattern"),
        (["empty"], ["image", "pdf"], r"the folder empty .* no picture or PDF: looked for .*\.png.*\.pdf"),
        (["*.gif"], ["image"], r"\*\.gif matches nothing: looked for names that end with \.png"),
        (["*.txt"], ["image"], r"\*\.txt matches 1 names, none of them a picture"),
        (["clip.mp4"], ["image"], r"clip\.mp4 is a video: expected a picture"),
        (["https://example.com/clip.mp4"], ["image", "pdf"], r"is a video: expected a picture or PDF"),
        ([""], ["image"], "the name of an input is empty"),
        (["x" * 5000], ["image"], "no possible name of a file|does not exist"),
        (["a\0b"], ["image"], "no possible name of a file|does not exist"),
    ],
)
def test_what_leads_nowhere_says_what_was_searched(tree: Path, sources: list[str], kinds: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        expand(sources, kinds)


def test_names_from_stdin(tree: Path) -> None:
    assert expand(["-"], names=io.StringIO("deep\n\n gone.png \npage1.jpg\n")) == [
        "deep/er/x.webp",
        "deep/page3.png",
        "gone.png",
        "page1.jpg",
    ]
    with pytest.raises(ValueError, match="stdin, one a line, and there were none"):
        expand(["-"], names=io.StringIO("\n"))


def test_natural_order() -> None:
    names = ["b.png", "A10.png", "a2.png", "a1b12.png", "a/z.png", "a1b3.png", "7.png", "07a.png", "page²x.png"]
    wanted = ["07a.png", "7.png", "a/z.png", "a1b3.png", "a1b12.png", "a2.png", "A10.png", "b.png", "page²x.png"]
    assert sorted(names, key=natural)[2:] == wanted[2:]
    assert sorted(["a.png", "A.png", "A.PNG"], key=natural) == ["A.PNG", "A.png", "a.png"]


def _work(source: str) -> Record:
    if source.startswith("bad"):
        raise ValueError("cannot be read")
    if source.startswith("missing"):
        raise FileNotFoundError(2, "No such file or directory", source)
    return Record({"size": len(source)}, f"{source} has {len(source)}")


def test_each_goes_on_after_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert each(["one", "bad.png", "missing", "two"], _work, as_json=False) == 1
    out, err = capsys.readouterr()
    assert out == "one:\none has 3\ntwo:\ntwo has 3\n"
    assert err.splitlines() == [
        "qwenvl: bad.png: cannot be read",
        "qwenvl: missing: No such file or directory",
        "qwenvl: 2 of 4 inputs failed",
    ]


def test_each_gives_a_json_record_for_every_source(capsys: pytest.CaptureFixture[str]) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    assert each(["größe", "bad", odd], _work, as_json=True) == 1
    out = capsys.readouterr().out
    assert "größe" in out
    assert [json.loads(line) for line in out.splitlines()] == [
        {"source": "größe", "size": 5},
        {"source": "bad", "error": "cannot be read"},
        {"source": odd, "size": 8},
    ]


def test_each_of_one_has_no_heading_and_raises(capsys: pytest.CaptureFixture[str]) -> None:
    assert each(["one"], _work, as_json=False) == 0
    assert capsys.readouterr().out == "one has 3\n"
    with pytest.raises(ValueError, match="cannot be read"):
        each(["bad"], _work, as_json=True)


def test_faults_of_ours_are_not_hidden() -> None:
    def broken(source: str) -> Record:
        raise AssertionError("ours")

    with pytest.raises(AssertionError):
        each(["one", "two"], broken, as_json=False)


def test_progress_is_one_line_that_goes_away() -> None:
    stream = io.StringIO()
    progress = Progress(3, stream)
    progress.show(0, "/far/away/page.png")
    progress.show(1, "data:image/png;base64," + "A" * 1000)
    progress.clear()
    first, second, last = stream.getvalue().split("\r\x1b[K")[1:]
    assert first == "[1/3] page.png"
    assert second.startswith("[2/3] data:  0:0")
    assert last == ""
    silent = io.StringIO()
    Progress(1, silent).show(0, "x")
    assert silent.getvalue() == ""


def test_outputs_have_names_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sources = ["a/cat.png", "b/Cat.jpg", "data:image/png;base64,AA", "https://example.com/dog.png?size=2"]
    names = [path.name for path in outputs(sources, "-boxes.png")]
    assert names == ["cat-boxes.png", "Cat-boxes-2.png", "picture-boxes.png", "dog-boxes.png"]
    assert outputs(["cat.png"], ".md", Path("x.md")) == [Path("x.md")]
    assert outputs(sources[:2], ".md", Path("new")) == [Path("new/cat.md"), Path("new/Cat-2.md")]
    assert Path("new").is_dir()
    assert outputs(["cat.png"], ".md", Path("new")) == [Path("new/cat.md")]


def test_outputs_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"is a file, and there are 2 inputs: give a folder"):
        outputs(["a", "b"], ".md", tmp_path / "file")
    with pytest.raises(ValueError, match=r"the folder .*gone does not exist"):
        outputs(["a"], ".md", tmp_path / "gone" / "x.md")
