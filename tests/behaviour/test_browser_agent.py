"""The browser agent in a real Chromium: a scripted model fills and sends a form on a loopback server, every action does
what it says, and the limits hold. Skipped where there is no Chromium or no Playwright."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from PIL import Image
from scripted_assistant import Asked, ScriptedAssistant

from qwenvl.media.resize import smart_resize
from qwenvl.tasks.agents import (
    Action,
    ActionError,
    Agent,
    BrowserDevice,
    DeviceLostError,
    Proposal,
    ask_when_risky,
    replay,
)
from qwenvl.tasks.agents.chromium import find_chromium

pytest.importorskip("playwright", reason='Playwright is missing: pip install "qwenvl[agents]"')
pytestmark = pytest.mark.skipif(
    find_chromium() is None, reason="no Chromium on this machine: apt-get install chromium (Debian)"
)

SIZE = (800, 600)
FORM = """<!doctype html><title>Sign up</title><style>
body { margin: 0; font: 16px sans-serif; height: 2000px }
input, textarea, button, a { position: absolute; left: 200px; width: 300px; height: 40px; box-sizing: border-box }
</style><form method="post" action="/send">
<input name="name" style="top: 40px"><input name="secret" type="password" style="top: 100px">
<textarea name="note" style="top: 160px; height: 80px"></textarea>
<input name="terms" type="checkbox" value="yes" style="top: 260px; width: 40px">
<button style="top: 320px">Send</button></form>"""
PLAY = """<!doctype html><title>Play</title><style>
body { margin: 0; height: 3000px } #log { position: fixed; bottom: 0 }
input { position: absolute; left: 50px; top: 50px; width: 300px }
#pad { position: absolute; left: 400px; top: 50px; width: 300px; height: 200px; background: #ddd }
a, button { position: absolute; left: 50px; width: 200px; height: 30px }
</style><input id="field" value="abc"><div id="pad"></div>
<a href="/thanks" target="_blank" style="top: 150px">new page</a>
<a href="http://localhost.example:1/away" style="top: 200px">away</a>
<a href="/redirect" style="top: 250px">redirected away</a>
<a href="file:///etc/hostname" style="top: 300px">file</a>
<button onclick="if (confirm('Sure?')) document.title = 'yes'" style="top: 350px">ask</button>
<a href="/slow" style="top: 400px">slow</a>
<script>
const seen = []; window.seen = seen;
const pad = document.getElementById("pad");
for (const kind of ["mousedown", "mouseup", "dblclick", "contextmenu", "auxclick", "click"])
  pad.addEventListener(kind, e => { seen.push([kind, e.clientX, e.clientY, e.button]); e.preventDefault(); });
pad.addEventListener("mousemove", e => seen.push(["mousemove", e.clientX, e.clientY, e.buttons]));
document.addEventListener("keydown", e => seen.push(["keydown", e.key, e.ctrlKey]));
</script>"""


@dataclass
class Site:
    """A server on loopback and what it received. port: where."""

    port: int
    received: list[dict[str, list[str]]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def url(self, path: str = "/") -> str:
        return f"http://localhost:{self.port}{path}"


@pytest.fixture(scope="module")
def server() -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.asked.append(f"{self.headers['Host']} {self.path}")
            time.sleep(1.0 if self.path == "/slow" else 0.0)
            if self.path == "/redirect":
                self.send_response(302)
                self.send_header("Location", f"http://127.0.0.1:{site.port}/foreign")
                self.end_headers()
                return
            hang = "<title>Hang</title><button style='width: 300px' onclick='for (;;);'>for ever</button>"
            pages = {"/": FORM, "/play": PLAY, "/hang": hang, "/thanks": "<title>Thank you</title><h1>Thank you</h1>"}
            self._answer(200, pages.get(self.path, f"<title>{self.path}</title>"))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            site.received.append(parse_qs(body, keep_blank_values=True))
            self.send_response(303)
            self.send_header("Location", "/thanks")
            self.end_headers()

        def _answer(self, code: int, page: str) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, *_: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site = Site(running.server_address[1])
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield site
    running.shutdown()


def device(site: Site, path: str = "/", **options: Any) -> BrowserDevice:
    return BrowserDevice(site.url(path), width=SIZE[0], height=SIZE[1], settle=0.1, **options)


def call(x: float = -1, y: float = -1, scale: float = 1.0, **arguments: Any) -> str:
    """The answer that asks for this; x, y in CSS pixels, told in those that the model sees."""
    if x >= 0:
        high, wide = smart_resize(round(SIZE[1] * scale), round(SIZE[0] * scale), max_pixels=16384 * 784)
        arguments["coordinate"] = [round(x * wide / SIZE[0]), round(y * high / SIZE[1])]
    return "<tool_call>\n" + json.dumps({"name": "computer_use", "arguments": arguments}) + "\n</tool_call>"


def sign_up(scale: float = 1.0) -> list[str]:
    return [
        call(350, 60, scale, action="left_click"),
        call(action="type", text="Ada Łovelace 🙂"),
        call(action="key", keys=["Tab"]),
        call(action="type", text="s3cret&=+"),
        call(350, 200, scale, action="left_click"),
        call(action="type", text="one\ntwo"),
        call(220, 280, scale, action="left_click"),
        call(350, 340, scale, action="left_click"),
        "The form was sent.\n" + call(action="terminate", status="success"),
    ]


SENT = {"name": ["Ada Łovelace 🙂"], "secret": ["s3cret&=+"], "note": ["one\r\ntwo"], "terms": ["yes"]}


@pytest.mark.feature(90, 97)
@pytest.mark.parametrize("scale", [1.0, pytest.param(2.0, marks=pytest.mark.slow)])
def test_a_form_is_filled_and_sent_and_the_trace_replays(server: Site, tmp_path: Path, scale: float) -> None:
    server.received.clear()
    model = ScriptedAssistant(sign_up(scale))
    proposals = []

    def yes(proposal: Proposal) -> bool:
        proposals.append(proposal.risk)
        return True

    with device(server, scale=scale) as page:
        trace = tmp_path / "trace"
        run = Agent(model, page, "Sign up as Ada", trace=trace, approve=ask_when_risky(yes)).run()
        assert (run.status, run.reason) == ("success", "The form was sent.")
        assert page.state() == {"url": server.url("/thanks"), "title": "Thank you"}
    assert server.received == [SENT]
    assert proposals == ["types into a password field", "submits a form"]
    width, height = (round(side * scale) for side in SIZE)
    assert model.asked[0].media[0].size == (width, height)
    assert f"resolution is {run.steps[0].sizes['seen'][0]}x" in model.asked[0].tools[0]["function"]["description"]
    assert "Step 8: " in model.asked[-1].question

    with device(server, scale=scale) as page:
        again = replay(trace, page)
    assert again.same, again
    assert again.done == 8
    assert again.similarity is not None
    assert again.similarity > 0.999
    assert server.received == [SENT, SENT]
    with Image.open(trace / "step-008-act.jpg") as drawn:
        assert drawn.size == (width, height)


@pytest.mark.slow
def test_a_replay_that_ends_elsewhere_says_so(server: Site, tmp_path: Path) -> None:
    with device(server) as page:
        Agent(ScriptedAssistant(sign_up()), page, "Sign up", trace=tmp_path / "t").run()
    with device(server, path="/other") as page:
        again = replay(tmp_path / "t", page)
    assert not again.same
    assert "title is '/other', it was 'Thank you'" in again.differences


@pytest.fixture(scope="module")
def play(server: Site) -> Iterator[BrowserDevice]:
    with device(server, path="/play") as page:
        yield page


def seen(page: BrowserDevice, kinds: tuple[str, ...]) -> list[list[Any]]:
    return [event for event in page._call(lambda: page._page.evaluate("seen.splice(0)")) if event[0] in kinds]


def text(page: BrowserDevice, script: str) -> Any:
    return page._call(lambda: page._page.evaluate(script))


@pytest.mark.slow
@pytest.mark.feature(90)
def test_every_mouse_action(play: BrowserDevice) -> None:
    play.act(Action("mouse_move", (450, 100)))
    assert seen(play, ("mousemove",))[-1] == ["mousemove", 450, 100, 0]
    play.act(Action("left_click"))  # where the cursor is
    assert seen(play, ("mousedown", "click")) == [["mousedown", 450, 100, 0], ["click", 450, 100, 0]]
    play.act(Action("double_click", (460, 110)))
    assert seen(play, ("dblclick",)) == [["dblclick", 460, 110, 0]]
    play.act(Action("right_click", (470, 120)))
    assert seen(play, ("contextmenu",)) == [["contextmenu", 470, 120, 2]]
    play.act(Action("middle_click", (480, 130)))
    assert seen(play, ("auxclick",)) == [["auxclick", 480, 130, 1]]
    play.act(Action("mouse_move", (420, 70)))
    seen(play, ())
    play.act(Action("left_click_drag", (600, 200)))
    events = seen(play, ("mousedown", "mousemove", "mouseup"))
    assert events[0] == ["mousemove", 420, 70, 0] or events[0] == ["mousedown", 420, 70, 0]
    assert events[-2:] == [["mousemove", 600, 200, 1], ["mouseup", 600, 200, 0]]
    play.act(Action("left_click_drag", (410, 60), (500, 90)))
    assert [e[:3] for e in seen(play, ("mousedown", "mouseup"))] == [["mousedown", 410, 60], ["mouseup", 500, 90]]
    play.act(Action("scroll", pixels=-700.0))
    assert text(play, "scrollY") == 700
    play.act(Action("scroll", (400, 300), pixels=300.0))
    assert text(play, "scrollY") == 400
    play.act(Action("scroll", pixels=5000.0))


@pytest.mark.slow
@pytest.mark.feature(90)
def test_every_keyboard_action(play: BrowserDevice) -> None:
    play.act(Action("left_click", (100, 60)))
    seen(play, ())
    play.act(Action("key", keys=("ctrl", "a")))
    assert seen(play, ("keydown",)) == [["keydown", "Control", True], ["keydown", "a", True]]
    play.act(Action("type", text="Größe “x” 北京 🙂"))
    assert text(play, "field.value") == "Größe “x” 北京 🙂"
    for keys in (("Home",), ("Delete",), ("é",), ("shift", "End"), ("BackSpace",), ("Z",)):
        play.act(Action("key", keys=keys))
    assert text(play, "field.value") == "éZ"
    with pytest.raises(ActionError, match="unknown key 'hyper'"):
        play.act(Action("key", keys=("hyper",)))
    with pytest.raises(ActionError, match="no keyboard has the key '北'"):
        play.act(Action("key", keys=("ctrl", "北")))
    seen(play, ())
    play.act(Action("key", keys=("a",)))
    assert seen(play, ("keydown",)) == [["keydown", "a", False]]  # nothing is left held
    with pytest.raises(ActionError, match="cannot do 'swipe'"):
        play.act(Action("swipe", (1, 1), (2, 2)))


@pytest.mark.slow
def test_what_pages_may_not_do(server: Site) -> None:
    with device(server, path="/play") as page:
        assert "a dialog said 'Sure?' and was dismissed" in page.act(Action("left_click", (100, 365)))
        assert page.state()["title"] == "Play"
        assert "localhost.example is not allowed: allowed are localhost" in page.act(Action("left_click", (100, 215)))
        assert page.state() == {"url": server.url("/play"), "title": "Play"}
        page.act(Action("left_click", (100, 315)))  # browsers ignore links to files
        assert page.state()["url"] == server.url("/play")
        note = page.act(Action("left_click", (100, 265)))
        assert "the host 127.0.0.1 is not allowed" in note
        assert page.state()["url"] == "about:blank"
    with pytest.raises(ValueError, match=r"/redirect leads elsewhere: the host 127\.0\.0\.1 is not allowed"):
        device(server, path="/redirect")
    with pytest.raises(DeviceLostError, match="closed"):
        page.screenshot()


@pytest.mark.slow
def test_isolated_pages_reach_no_other_host(server: Site) -> None:
    with device(server, path="/play", isolate=True) as page:
        server.asked.clear()
        page.act(Action("left_click", (100, 265)))
        assert [path for path in server.asked if "favicon" not in path] == [f"localhost:{server.port} /redirect"]


@pytest.mark.slow
def test_a_slow_page_is_waited_for(server: Site) -> None:
    with device(server, path="/play") as page:
        page.act(Action("left_click", (100, 415)))
        assert page.state()["title"] == "/slow"


@pytest.mark.slow
def test_a_new_page_is_followed_and_left(server: Site) -> None:
    with device(server, path="/play") as page:
        page.act(Action("left_click", (100, 165)))
        assert page.state()["title"] == "Thank you"
        assert page.screenshot().size == SIZE
        page._call(lambda: page._page.close())
        assert page.state()["title"] == "Play"


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp://x/y", {}, "expected an http"),
        ("javascript:alert(1)", {}, "expected an http"),
        ("file:///etc/hostname", {}, "files are not allowed"),
        ("http://localhost:9/", {"allowed": ["example.com"]}, "host localhost is not allowed: allowed are example.com"),
        ("http://evil-example.com/", {"allowed": ["example.com"]}, "is not allowed"),
        pytest.param("http://localhost:9/", {}, "cannot be opened", marks=pytest.mark.slow),
        ("http://localhost/", {"executable": "/nowhere/chromium"}, "no Chromium was found"),
        ("http://localhost/", {"scale": 9.0}, "a scale from 0.25 to 4"),
    ],
)
def test_mistakes_are_told(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BrowserDevice(url, **options)


@pytest.mark.slow
def test_files_are_opened_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text("<title>a file</title>")
    with BrowserDevice((tmp_path / "a.html").as_uri(), allow_files=True) as page:
        assert page.state()["title"] == "a file"


@pytest.mark.slow
def test_a_browser_that_dies_ends_the_run(server: Site, tmp_path: Path) -> None:
    with device(server) as page:

        def answer(asked: Asked) -> str:
            page._call(lambda: page._browser.close())
            return call(350, 60, action="left_click")

        run = Agent(ScriptedAssistant(answer), page, "Sign up", trace=tmp_path / "t").run()
    assert run.status == "lost"
    assert "browser is gone" in run.reason
    assert json.loads((tmp_path / "t" / "run.json").read_text())["status"] == "lost"


@pytest.mark.slow
def test_a_page_that_hangs_ends_the_run(server: Site) -> None:
    with device(server, path="/hang") as page:
        assert page.state()["title"] == "Hang"
        page._timeout = 1.0
        with pytest.raises(DeviceLostError, match=r"does not answer: nothing came for 2\.1 s"):
            page.act(Action("left_click", (100, 20)))


@pytest.mark.slow
def test_it_works_inside_a_running_event_loop(server: Site) -> None:
    """As in a notebook, where Playwright's own synchronous interface refuses to work."""
    import asyncio

    async def cell() -> str:
        with device(server) as page:
            return str(page.state()["title"])

    assert asyncio.run(cell()) == "Sign up"
