"""The form of computer_use.py as a web page on this machine: the same places as the drawn one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import parse_qs

PAGE = """<!doctype html><meta charset="utf-8"><title>{title}</title>
<style>body {{ margin: 0; font: 20px sans-serif; background: #F4F4F0 }} h1 {{ font-size: 20px; margin: 24px }}
input, button {{ position: absolute; box-sizing: border-box; font-size: 20px; height: 50px; left: 160px; width: 320px }}
button {{ left: 240px; width: 160px; top: 270px }}</style><h1>{title}</h1>{body}"""
FORM = """<form method="post"><input name="name" placeholder="name" style="top: 105px">
<input name="password" type="password" placeholder="password" style="top: 185px"><button>Send</button></form>"""


@dataclass
class Form:
    """url: of the page. received: what was sent, field by field."""

    url: str
    received: dict[str, str] = field(default_factory=dict)


@contextmanager
def serve_form() -> Iterator[Form]:
    """The page while it is open, for this machine alone."""
    received: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._page("Sign up", FORM)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            received.update({name: values[0] for name, values in parse_qs(body).items()})
            self._page("Thank you", "")

        def _page(self, title: str, body: str) -> None:
            data = PAGE.format(title=title, body=body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            """Nothing on the terminal."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield Form(f"http://127.0.0.1:{server.server_port}/", received)
    finally:
        server.shutdown()
        server.server_close()
