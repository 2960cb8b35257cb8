"""The benchmark: its inputs, its processes, its arithmetic, and one whole run of it on the tiny size."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_fakes import fake_row
from PIL import Image

from qwenvl.bench import conductor
from qwenvl.bench.checkpoint import BASE, SIZES, checkpoint
from qwenvl.bench.conductor import Plan, Record, Run
from qwenvl.bench.figures import of_answer, of_batch, of_chat, of_step, of_stream, times_of
from qwenvl.bench.ours import Ours
from qwenvl.bench.phases import PHASES, Draws, Limits
from qwenvl.bench.pictures import Album, draw
from qwenvl.bench.play import play
from qwenvl.bench.process import Process, RunnerError
from qwenvl.bench.rows import PEERS, our_rows, peer_rows
from qwenvl.bench.runner import load_file, obey
from qwenvl.bench.summary import reference, summarize
from qwenvl.bench.vocabulary import full_tokenizer
from qwenvl.bench.work import Work
from qwenvl.bench.workload import FOLLOW_UP, PROMPT, TINY, Workload
from qwenvl.config import Qwen2_5_VLConfig, load_config
from qwenvl.demo.vocabulary import ADDED_TOKENS, SYSTEM_PROMPT

PEER = PEERS / "transformers_peer.py"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint("tiny", tmp_path_factory.mktemp("bench"))


@pytest.fixture
def plan(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A tower phase for a fake of ours and a fake peer."""
    rows = [fake_row(tmp_path), fake_row(tmp_path, "peer slow", "slow")]
    monkeypatch.setattr(conductor, "LIMITS", rows[0].file)
    config = load_config(tiny)
    assert isinstance(config, Qwen2_5_VLConfig)
    phases = {"tower": PHASES["tower"]}
    return Plan(rows, phases, TINY, Work(config), tmp_path, 2, 1, tmp_path / "cache", tmp_path / "out")


def slice_work() -> Work:
    size = SIZES["3b-slice"]
    common = {"patch_size": 14, "tokens_per_second": 2, "window_size": 112}
    text = {**size.text, "vocab_size": size.vocabulary}
    return Work(Qwen2_5_VLConfig(text_config=text, vision_config={**size.vision, **common}))


# inputs


def test_the_vocabulary_has_the_official_ids() -> None:
    words = f"system user assistant {SYSTEM_PROMPT} {PROMPT}".replace(",", "").replace(".", "").replace(":", "").split()
    tokenizer = full_tokenizer(words)
    assert [tokenizer.token_to_id(text) for text, _ in ADDED_TOKENS] == list(range(BASE, BASE + 22))
    assert tokenizer.token_to_id("<|image_pad|>") == 151655
    assert tokenizer.get_vocab_size() == 151665
    turn = f"<|im_start|>user\n<|vision_start|><|vision_end|>{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer.encode(f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n{turn}").ids) == 52
    text = "Zwölf Boxkämpfer 猫が好き 🙂\r\n\t the quick"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_vocabulary_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 256"):
        full_tokenizer([], 100)
    with pytest.raises(ValueError, match=r"more than the 2\d{5} tokens"):
        full_tokenizer([], 1_000_000)


def test_the_checkpoint_is_made_once_and_computes_sane_logits(tiny: Path) -> None:
    from qwenvl.checkpoint import load_model

    before = (tiny / "model.safetensors").stat().st_mtime_ns
    assert checkpoint("tiny", tiny.parent) == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == before
    model = load_model(tiny)
    assert model.dtype == torch.bfloat16
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([[5, 700, 900]])).logits.float()
    assert logits.isfinite().all()
    assert logits.std(-1).min() > 0.01
    with pytest.raises(ValueError, match="expected one of 3b-slice, 300m, tiny"):
        checkpoint("huge", tiny.parent)


def test_pictures_are_the_same_for_the_same_seed_and_never_twice(tmp_path: Path) -> None:
    one, other = draw(84, 56, 1), draw(84, 56, 2)
    assert one.size == (84, 56)
    assert np.array_equal(one, draw(84, 56, 1))
    assert np.abs(np.asarray(one, int) - np.asarray(other, int)).mean() > 10
    assert np.asarray(one).std() > 10
    draws = Draws(Album(tmp_path, 7))
    paths = [Path(draws.picture((84, 56))) for _ in range(3)]
    assert len({path.read_bytes() for path in paths}) == 3
    assert Image.open(paths[0]).size == (84, 56)


def test_the_stream_of_requests() -> None:
    load = Workload()
    stream = load.stream(0)
    assert stream == load.stream(0) != load.stream(1)
    assert len(stream) == 32
    assert [a.at for a in stream] == sorted(a.at for a in stream)
    assert np.mean(np.diff([a.at for a in load.stream(3)])) == pytest.approx(load.gap, rel=0.5)
    for arrival in stream:
        assert 200 <= arrival.size[0] * arrival.size[1] / 784 <= 1500
        assert 16 <= arrival.new_tokens <= 96


# arithmetic


def test_figures_of_answers() -> None:
    assert of_answer({}, {"times": [2.0, 2.5, 3.0]}) == {"first": 2.0, "decode": 2.0}
    assert of_answer({}, {"times": [2.0]}) == {"first": 2.0}
    assert times_of({"first": 1.0, "end": 3.0, "tokens": 3}) == [1.0, 2.0, 3.0]
    together = {"requests": [{"times": [1.0, 2.0, 3.0, 4.0]}, {"times": [2.0, 3.0, 4.0, 5.0]}]}
    assert of_batch({}, together) == {"total": 8 / 5, "decode": 2.0}  # tokens at 3, 4 and 3, 4 within (2, 4]
    assert "decode" not in of_batch({}, {"requests": [{"times": [1.0, 2.0]}, {"times": [3.0, 4.0]}]})
    asked = {"requests": [{"at": 0.0}, {"at": 1.5}]}
    assert of_stream(asked, together) == {"total": 8 / 5, "wait": 0.75}
    turns = {"turns": [{"times": [9.0]}, {"times": [0.5, 1.0]}]}
    assert of_chat({}, turns) == {"second_first": 0.5, "second": 1.0}
    assert of_step({"batch": 4}, {"seconds": 1.0, "tokens": 40})["step"] == pytest.approx(0.1)


def test_the_work_of_the_slice_by_hand() -> None:
    work = slice_work()
    assert work.grid((1024, 768)) == (54, 74)
    patches, width = 3996, 1280
    products = 8 * (4 * width**2 + 3 * width * 3420) + 1176 * width
    merger = (5120**2 + 5120 * 2048) / 4
    attention = 4 * width * (patches + 7 * 64)
    assert work.tower((1024, 768)) == pytest.approx(patches * (2 * products + 2 * merger + attention))
    assert work.tower((1024, 768), 3) == pytest.approx(3 * work.tower((1024, 768)))
    layer = 2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 11008
    assert work.layer_weights == 8 * layer
    head = 2048 * 151936
    assert work.prefill(100) == pytest.approx(2 * 8 * layer * 100 + 8 * 2 * 2048 * 100**2 + 2 * head)
    assert work.step([10, 20], "bf16") == pytest.approx(2 * (8 * layer + head) + 30 * 2 * 2 * 8 * 256)
    assert work.step([], "int8") == 8 * layer + head


def test_ratios_are_of_rounds_and_shares_of_limits(plan: Plan) -> None:
    run = Run(limits={"tower": Limits(gflops=1.0, gbs=1.0)})
    run.about = {"qwenvl": {"weights": "bf16"}, "peer": {"weights": "bf16"}}
    label = f"{TINY.large[0]}x{TINY.large[1]}"
    for row, seconds in {"qwenvl": [1.0, 2.0, 4.0], "peer": [3.0, 4.0, 4.0]}.items():
        run.records += [Record("tower", label, "tower", row, i, s) for i, s in enumerate(seconds)]
    [line] = summarize(plan, run)
    ours, peer = line.cells["qwenvl"], line.cells["peer"]
    assert (ours.value.median, ours.value.least, ours.value.most) == (2.0, 1.0, 4.0)
    assert ours.ratio is None
    assert peer.ratio is not None
    assert (peer.ratio.median, peer.ratio.least, peer.ratio.most) == (2.0, 1.0, 3.0)
    assert ours.share == pytest.approx(plan.work.tower(TINY.large) / 1e9 / 2.0)


def test_a_peer_is_compared_with_our_row_of_its_kind_of_weights() -> None:
    kinds = {"qwenvl": "bf16", "qwenvl int8": "int8", "a": "int8", "b": "int4", "c": "bf16"}
    about = {row: {"weights": weights} for row, weights in kinds.items()}
    assert [reference(row, about) for row in about] == [None, None, "qwenvl int8", "qwenvl", "qwenvl"]


@pytest.mark.parametrize("name", PHASES)
def test_best_times_of_every_phase_belong_to_its_figures(name: str, tmp_path: Path) -> None:
    points = PHASES[name].points(Workload(), slice_work())
    assert len({point.label for point in points}) == len(points)
    for point in points:
        best = point.best(Limits(800.0, 40.0), "bf16")
        assert set(best) <= {"tower", "prefill", "first", "decode", "step"}
        assert all(value > 0 for value in best.values())
    if PHASES[name].axis:
        assert [point.x for point in points] == sorted(point.x for point in points)


# processes


def test_a_process_is_stopped_between_commands(tmp_path: Path) -> None:
    with Process(fake_row(tmp_path), tmp_path, tmp_path, 1, tmp_path / "log") as process:
        assert process.ask("about")["version"] == "1"
        pid = process._process.pid
        state = Path(f"/proc/{pid}/stat")
        if state.exists():
            time.sleep(0.2)  # the signal takes a moment to arrive
            assert state.read_text().rsplit(")", 1)[1].split()[0] == "T"
            assert process.peak_bytes() > 2**20
        assert process.ask("load") == {"seconds": 0.0}  # its own print does not come between
    assert not process.alive
    assert "noise on stdout" in (tmp_path / "log").read_text()


def test_what_a_process_cannot_do_is_told(tmp_path: Path) -> None:
    with Process(fake_row(tmp_path, variant="dies"), tmp_path, tmp_path, 1, tmp_path / "log") as process:
        with pytest.raises(RunnerError, match="no text model") as caught:
            process.ask("prefill", tokens=1, seed=1)
        assert caught.value.unsupported
        with pytest.raises(RunnerError, match="it has no fly") as caught:
            process.ask("fly")
        assert caught.value.unsupported
        with pytest.raises(RunnerError, match="ValueError: a bad picture") as caught:
            process.ask("patches", picture="x")
        assert not caught.value.unsupported
        with pytest.raises(RunnerError, match="ended during tower with code 3"):
            process.ask("tower", picture="x")
        assert not process.alive


def test_private_methods_are_no_commands() -> None:
    assert "unsupported" in obey(Ours("", 1, ""), {"do": "_encode"})
    assert "load" in obey(Ours("", 1, ""), {"do": "patches", "picture": "x"})["error"]


def test_runs_interleave_and_a_report_is_written(plan: Plan) -> None:
    told: list[str] = []
    outcome = play(plan, 3, told.append)
    order = [line.split() for line in (plan.model / "order.txt").read_text().splitlines()]
    assert [who for who, *_ in order] == ["plain", "slow"] * 6  # a warm-up and two rounds of two points
    assert all(a[2] == b[2] for a, b in zip(order[::2], order[1::2], strict=True))  # both saw the same picture
    assert len({picture for *_, picture in order}) == 6  # and nobody saw it twice
    assert len(outcome.run.records) == 2 * 2 * 2
    assert (plan.cache / "peer-slow" / "converted").exists()
    assert {line.cells["peer slow"].ratio.median for line in outcome.lines} == {2.0}  # type: ignore[union-attr]
    report = (plan.folder / "bench.md").read_text()
    assert "2 (2 to 2); 2.00 x (2.00 to 2.00)" in report
    data = json.loads((plan.folder / "bench.json").read_text())
    assert data["seed"] == 3
    assert len(data["records"]) == 8
    assert data["limits"]["tower"] == {"gflops": 100.0, "gbs": 10.0}
    assert data["machine"]["torch"] == torch.__version__
    assert any("round 2: peer slow" in text for text in told)


def test_the_picture_is_drawn_where_matplotlib_is(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl.bench.chart import draw_chart

    run = Run(limits={"tower": Limits(1.0, 1.0), "pixels": Limits(1.0, 1.0)}, about={"qwenvl": {}, "peer": {}})
    for name in ("tower", "pixels"):
        plan.phases[name] = PHASES[name]
        for point in PHASES[name].points(TINY, plan.work):
            run.records += [Record(name, point.label, "tower", row, 0, 1.5) for row in run.about]
    lines = summarize(plan, run)
    path = plan.model / "chart.png"
    pytest.importorskip("matplotlib")
    draw_chart(path, plan, lines)
    assert Image.open(path).width > 500
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r'pip install "qwenvl\[train\]"'):
        draw_chart(path, plan, lines)


def test_a_row_that_dies_does_not_end_the_run(plan: Plan, tmp_path: Path) -> None:
    rows = [fake_row(tmp_path), fake_row(tmp_path, "peer", "dies")]
    phases = {name: PHASES[name] for name in ("tower", "prefill", "context")}
    dying = Plan(rows, phases, TINY, plan.work, tmp_path, 1, 1, tmp_path / "cache", tmp_path / "out")
    outcome = play(dying, 0, lambda text: None)
    assert {(row, where.split(",")[0]) for row, where, _ in outcome.run.problems} == {
        ("peer", "tower"), ("qwenvl", "prefill"), ("peer", "prefill"),
    }  # fmt: skip
    assert any("not supported: it has no text model" in what for *_, what in outcome.run.problems)
    rows_of = {phase: {r.row for r in outcome.run.records if r.phase == phase} for phase in phases}
    assert rows_of == {"tower": {"qwenvl"}, "prefill": set(), "context": {"qwenvl", "peer"}}  # it was started again
    assert "## What did not run" in (dying.folder / "bench.md").read_text()


def test_rows() -> None:
    assert [(row.name, row.variant) for row in our_rows(["none", "int8"])] == [("qwenvl", ""), ("qwenvl int8", "int8")]
    with pytest.raises(ValueError, match="expected some of none, int8, int4"):
        our_rows(["int3"])
    [row] = peer_rows([f"transformers:fast={sys.executable}"])
    assert (row.name, row.variant, row.python) == ("transformers fast", "fast", sys.executable)
    assert row.file == PEER
    assert peer_rows(["none"]) == []
    with pytest.raises(ValueError, match=r"known are .*transformers"):
        peer_rows(["nobody"])
    with pytest.raises(ValueError, match="there is no Python /no/python"):
        peer_rows(["transformers=/no/python"])


# the runners themselves


def commands(album: Album) -> list[dict[str, Any]]:
    draws = Draws(album)
    size = TINY.small
    asked = {"prompt": PROMPT, "new_tokens": 3}
    stream = [{"at": 0.01 * i, "picture": draws.picture(size), **asked} for i in range(3)]
    return [
        {"do": "patches", "picture": draws.picture(size)},
        {"do": "tower", "picture": draws.picture(size)},
        {"do": "frames", "pictures": [draws.picture(size) for _ in range(4)]},
        {"do": "prefill", "tokens": 20, "seed": 1},
        {"do": "decode", "context": 20, "batch": 3, "steps": 4, "seed": 2},
        {"do": "answer", "picture": draws.picture(size), **asked},
        {"do": "serve", "requests": stream},
        {"do": "chat", "picture": draws.picture(size), **asked, "follow_up": FOLLOW_UP, "next_tokens": 2},
    ]


def check_answers(answers: list[dict[str, Any]]) -> None:
    """What every runner must give to `commands`."""
    patches, tower, frames, prefill, decode, answer, serve, chat = answers
    assert [patches["tokens"], tower["tokens"], frames["tokens"]] == [9, 9, 18]
    assert all(one["seconds"] > 0 for one in (patches, tower, frames, prefill, decode))
    assert decode["tokens"] == 12
    assert [len(answer["times"]), answer["prompt_tokens"] > 60] == [3, True]
    assert [len(one["times"]) for one in serve["requests"]] == [3, 3, 3]
    assert serve["requests"][2]["times"][0] > 0.02
    assert [len(turn["times"]) for turn in chat["turns"]] == [3, 2]
    every = [answer, *serve["requests"], *chat["turns"]]
    assert all(one["times"] == sorted(one["times"]) and one["times"][0] > 0 for one in every)


def test_our_runner_obeys_every_command(tiny: Path, tmp_path: Path) -> None:
    peer = Ours(str(tiny), torch.get_num_threads(), "")
    assert peer.about()["weights"] == "bf16"
    peer.load()
    check_answers([obey(peer, command) for command in commands(Album(tmp_path, 0))])


@pytest.mark.slow
def test_transformers_obeys_every_command_and_sees_the_same_prompt(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    ours = Ours(str(tiny), 1, "")
    peer = load_file(str(PEER)).open_peer(str(tiny), 1, "", str(tmp_path))
    peer.load()
    ours.load()
    try:
        answers = [obey(peer, command) for command in commands(Album(tmp_path, 0))]
    finally:
        torch.set_grad_enabled(True)
    check_answers(answers)
    [asked] = [command for command in commands(Album(tmp_path, 0)) if command["do"] == "answer"]
    assert answers[5]["prompt_tokens"] == obey(ours, asked)["prompt_tokens"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_whole_program_on_the_tiny_size(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from qwenvl.cli.bench import bench

    bench(None, "tiny", "answer,start,memory", 1, "none", ["none"], 1, 5, tiny.parent, tmp_path / "out")
    data = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert data["problems"] == []
    assert {line["metric"] for line in data["lines"]} == {"first", "decode", "start", "memory"}
    assert all(line["cells"]["qwenvl"]["value"]["median"] > 0 for line in data["lines"])
    assert "bench.md" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("phases", "fly", "expected some of patches"), ("quantize", "int3", "int4"), ("size", "huge", "3b-slice")],
)
def test_a_wrong_option_is_told(option: str, value: str, words: str, tmp_path: Path) -> None:
    from qwenvl.cli.bench import bench

    given: dict[str, Any] = {"size": "tiny", "phases": "tower", "rounds": 1, "quantize": "none", option: value}
    with pytest.raises(ValueError, match=words):
        bench(None, peer=["none"], threads=1, seed=0, cache=tmp_path, out=tmp_path, **given)
