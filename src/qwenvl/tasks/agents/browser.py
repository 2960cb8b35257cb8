"""A browser page as a device: Chromium without a window, driven by Playwright.

In: an address to begin at; Actions in CSS pixels of the page. Out: pictures of the page in device pixels (scale x CSS
pixels), and the page's address and title.
Needs `pip install "qwenvl[agents]"` and a Chromium: the system's own (Debian: apt-get install chromium) is found by
name, another one is named by `executable`. Nothing is downloaded.

    with BrowserDevice("http://localhost:8000/form") as device:
        device.act(Action("left_click", coordinate=(640, 400)))

What it may do: open pages of `allowed` hosts only (by default that of the first address, with its subdomains), files
only where allow_files says so, no downloads, no dialogs (they are dismissed, and the model is told), always a fresh
profile. A page of an allowed host may load pictures, scripts and frames from elsewhere, and a redirect to a foreign
host is left again as soon as it is seen, when its first request has been made; with `isolate` neither happens.

Playwright's objects belong to one thread, so this device has one of its own: it works in notebooks too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from typing import TYPE_CHECKING, Any, Self, TypeVar

from qwenvl.tasks.agents.actions import Action, ActionError, Size
from qwenvl.tasks.agents.chromium import Addresses, Loading, first_line, is_page, playwright, program
from qwenvl.tasks.agents.devices import DeviceLostError
from qwenvl.tasks.agents.keys import browser_key
from qwenvl.tasks.agents.schemas import Tool
from qwenvl.tasks.agents.worker import Worker

if TYPE_CHECKING:
    from PIL.Image import Image
    from playwright.sync_api import Page, Route

_T = TypeVar("_T")

# What the place at (x, y), or the focus, is: "password", "submit", "field", "link" or "".
_WHAT = """
(place) => {
  let at = place ? document.elementFromPoint(place[0], place[1]) : document.activeElement;
  while (at && at.shadowRoot) {
    const inner = place ? at.shadowRoot.elementFromPoint(place[0], place[1]) : at.shadowRoot.activeElement;
    if (!inner || inner === at) break;
    at = inner;
  }
  if (!at) return "";
  const control = at.closest("input, button, textarea, select, a");
  if (!control) return at.isContentEditable ? "field" : "";
  const kind = (control.type || "").toLowerCase(), tag = control.tagName.toLowerCase();
  if (tag === "input" && kind === "password") return "password";
  if ((tag === "button" || tag === "input") && ["submit", "image"].includes(kind) && control.form) return "submit";
  const silent = ["button", "checkbox", "radio", "reset", "file"];
  if (tag === "input" && control.form && !silent.includes(kind)) return "entry";
  return tag === "a" ? "link" : "field";
}
"""


class BrowserDevice:
    """A page. width, height: of the view in CSS pixels; scale: device pixels of each, so that small letters are sharp
    in screenshots. allowed: hosts whose pages may be opened ("example.com" with its subdomains, "*" for all); None =
    the first address's. isolate: nothing else is reached, no picture, script or redirect of another host. settle:
    seconds to wait behind an action, beside loading. timeout: seconds a page may take.

    Raises ValueError for an address or browser that cannot be used; later, DeviceLostError when the browser is gone.
    """

    tool: Tool = "computer_use"

    def __init__(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 800,
        scale: float = 1.0,
        executable: str | None = None,
        allowed: Sequence[str] | None = None,
        allow_files: bool = False,
        isolate: bool = False,
        headless: bool = True,
        settle: float = 0.3,
        timeout: float = 30.0,
    ) -> None:
        if width < 1 or height < 1 or not 0.25 <= scale <= 4:
            raise ValueError(f"a view of {width} x {height} at {scale}: expected pixels, and a scale from 0.25 to 4")
        self.size: Size = (width, height)
        self.url, self.scale = url, scale
        self._addresses = Addresses.of(url, allowed, allow_files)
        self._isolate = isolate
        self._settle, self._timeout = settle, timeout
        if wrong := self._addresses.wrong(url):
            raise ValueError(wrong)
        self._notes: list[str] = []
        self._pointer = (0.0, 0.0)
        self._thread: Worker | None = Worker("browser")
        try:
            self._call(partial(self._start, program(executable), headless), timeout + 10.0)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def screenshot(self) -> Image:
        """What the view shows, in device pixels."""
        from PIL import Image as Pictures

        try:
            data = self._call(lambda: self._page.screenshot(timeout=1000 * self._timeout, animations="disabled"))
        except ActionError as error:
            raise DeviceLostError(f"the page cannot be seen: {error}") from None
        with Pictures.open(BytesIO(data)) as picture:
            return picture.convert("RGB")

    def act(self, action: Action) -> str:
        longer = (action.time or 0.0) + 0.05 * len(action.text or "")
        return self._call(partial(self._act, action), longer)

    def risk(self, action: Action) -> str:
        """What a click would hit, or where a text would go, as the page describes itself."""
        return self._call(partial(self._risk, action))

    def state(self) -> dict[str, Any]:
        return self._call(self._state)

    def describe(self) -> dict[str, Any]:
        named = {"url": self.url, "width": self.size[0], "height": self.size[1], "scale": self.scale}
        return {
            "kind": "browser",
            **named,
            "allowed": list(self._addresses.hosts),
            "allow_files": self._addresses.files,
        }

    def close(self) -> None:
        """End the browser. May be called twice."""
        if self._thread is None:
            return
        thread, self._thread = self._thread, None
        with suppress(TimeoutError):  # a browser that hangs ends with the program
            thread.call(self._stop, 10.0)
        thread.end()

    # in the device's own thread

    def _start(self, program: str, headless: bool) -> None:
        sync_api = playwright()
        self._playwright = sync_api.sync_playwright().start()
        arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        if self._isolate:
            arguments += self._addresses.resolver_rules()
        try:
            self._browser = self._playwright.chromium.launch(
                executable_path=program, headless=headless, args=arguments, timeout=1000 * self._timeout
            )
        except sync_api.Error as error:
            raise ValueError(f"{program} does not start: {first_line(error)}") from None
        width, height = self.size
        self._context = self._browser.new_context(
            viewport={"width": width, "height": height},
            device_scale_factor=self.scale,
            accept_downloads=False,
            service_workers="block",
        )
        self._context.route("**/*", self._guard)
        self._loading = Loading(self._context)
        self._context.on("page", self._follow)
        self._context.on("dialog", self._dismiss)
        self._page = self._context.new_page()
        try:
            self._page.goto(self.url, timeout=1000 * self._timeout)
        except sync_api.Error as error:
            raise ValueError(f"{self.url} cannot be opened: {first_line(error)}") from None
        if wrong := self._addresses.wrong(self._page.url):
            raise ValueError(f"{self.url} leads elsewhere: {wrong}")
        self._notes.clear()

    def _stop(self) -> None:
        for name, end in (("_browser", "close"), ("_playwright", "stop")):
            held = getattr(self, name, None)
            with suppress(Exception):  # it is gone already, which is what was wanted
                if held is not None:
                    getattr(held, end)()

    def _act(self, action: Action) -> str:
        mouse, keyboard = self._page.mouse, self._page.keyboard
        place = action.coordinate or self._pointer
        match action.action:
            case "mouse_move":
                mouse.move(*place)
            case "left_click":
                mouse.click(*place)
            case "right_click":
                mouse.click(*place, button="right")
            case "middle_click":
                mouse.click(*place, button="middle")
            case "double_click":
                mouse.dblclick(*place)
            case "left_click_drag":
                place = self._drag(action)
            case "scroll":
                mouse.move(*place)
                mouse.wheel(0, -(action.pixels or 0.0))
            case "type":
                keyboard.type(action.text or "")
            case "key":
                self._press([browser_key(key) for key in action.keys or ()])
            case "wait":
                self._page.wait_for_timeout(1000 * (action.time or 0.0))
            case other:
                raise ActionError(f"a browser cannot do {other!r}")
        self._pointer = place
        return self._settled()

    def _drag(self, action: Action) -> tuple[float, float]:
        """From coordinate to coordinate2, or from the cursor to coordinate; where it ends."""
        begin, end = self._pointer, action.coordinate
        if action.coordinate2 is not None:
            begin, end = action.coordinate or begin, action.coordinate2
        assert end is not None
        mouse = self._page.mouse
        mouse.move(*begin)
        mouse.down()
        mouse.move(*end, steps=12)
        mouse.up()
        return end

    def _press(self, keys: list[str]) -> None:
        """Down in order, up in reverse. A character that no key has is put in as text, where nothing is held."""
        keyboard = self._page.keyboard
        if len(keys) == 1 and len(keys[0]) == 1 and not keys[0].isascii():
            keyboard.insert_text(keys[0])
            return
        held: list[str] = []
        try:
            for key in keys:
                try:
                    keyboard.down(key)
                except playwright().Error:
                    raise ActionError(f"no keyboard has the key {key!r}") from None
                held.append(key)
        finally:
            for key in reversed(held):
                keyboard.up(key)

    def _settled(self) -> str:
        """Wait for what the action began; the notes that came up."""
        until = time.monotonic() + self._timeout
        self._page.wait_for_timeout(1000 * self._settle)
        with suppress(playwright().Error):  # the page went away meanwhile
            self._page.evaluate("() => new Promise(done => setTimeout(done, 0))")  # what was clicked has begun
        while self._loading and time.monotonic() < until:
            self._page.wait_for_timeout(20)
        self._loading.forget()
        try:
            self._page.wait_for_load_state("load", timeout=1000 * max(0.1, until - time.monotonic()))
        except playwright().TimeoutError:
            self._notes.append("the page is still loading")
        self._leave_foreign()
        notes, self._notes = self._notes, []
        return "; ".join(notes)

    def _state(self) -> dict[str, Any]:
        title = ""
        with suppress(playwright().Error):  # it is leaving for another page
            title = self._page.title()
        return {"url": self._page.url, "title": title}

    def _what(self, place: tuple[float, float] | None) -> str:
        """What is at the place, or has the focus: a word of _WHAT, or "unknown"."""
        try:
            return str(self._page.evaluate(_WHAT, list(place) if place else None))
        except playwright().Error:
            return "unknown"

    def _risk(self, action: Action) -> str:
        name = "left_click" if action.action == "double_click" else action.action
        enter = any(_is_enter(key) for key in action.keys or ()) or "\n" in (action.text or "")
        submits: tuple[str, ...] = ("entry", "password", "submit") if enter else ()
        if name == "left_click":
            what, submits = self._what(action.coordinate or self._pointer), ("submit",)
        elif name == "type" or enter:
            what = self._what(None)
        else:
            return ""
        if what == "unknown":
            return "what it would act on is not known"
        if name == "type" and what == "password":
            return "types into a password field"
        return "submits a form" if what in submits else ""

    # what pages may not do

    def _guard(self, route: Route) -> None:
        request = route.request
        of_page = is_page(request)
        wrong = self._addresses.wrong(request.url) if of_page or request.url.startswith("file:") else ""
        if not wrong:
            route.continue_()
        elif of_page:
            self._notes.append(wrong)
            route.fulfill(status=204)  # "no content": the page stays as it is
        else:
            route.abort("blockedbyclient")

    def _leave_foreign(self) -> None:
        """A redirect is not asked about by Playwright: where it led out, show nothing instead."""
        url, pages = self._page.url, self._context.pages
        if url == "about:blank" and self._notes and len(pages) > 1:
            self._page.close()  # opened for an address that is not allowed
        elif not url.startswith(("about:", "chrome-error:")) and (wrong := self._addresses.wrong(url)):
            self._notes.append(wrong)
            self._page.goto("about:blank")

    def _follow(self, page: Page) -> None:
        """A page that another one opens is the one that is seen from now on; when it is closed, the one before."""
        self._page = page
        self._loading.watch(page)
        page.on("close", lambda _: self._back_from(page))

    def _back_from(self, page: Page) -> None:
        others = [other for other in self._context.pages if other is not page]
        if self._page is page and others:
            self._page = others[-1]

    def _dismiss(self, dialog: Any) -> None:
        self._notes.append(f"a dialog said {dialog.message!r} and was dismissed")
        dialog.dismiss()

    def _call(self, work: Callable[[], _T], longer: float = 0.0) -> _T:
        """Do it in the browser's thread. DeviceLostError where the browser is gone or hangs; ActionError for what it
        refuses."""
        if self._thread is None:
            raise DeviceLostError("the browser is closed")
        limit = 2 * self._timeout + self._settle + longer
        try:
            return self._thread.call(partial(self._guarded, work), limit)
        except TimeoutError:
            raise DeviceLostError(f"the page does not answer: nothing came for {limit:g} s") from None

    def _guarded(self, work: Callable[[], _T]) -> _T:
        errors = playwright()
        try:
            return work()
        except errors.Error as error:
            browser = getattr(self, "_browser", None)
            if browser is None or not browser.is_connected() or self._page.is_closed():
                raise DeviceLostError(f"the browser is gone: {first_line(error)}") from None
            raise ActionError(f"the browser refused: {first_line(error)}") from None


def _is_enter(name: str) -> bool:
    try:
        return browser_key(name) == "Enter"
    except ActionError:
        return False
