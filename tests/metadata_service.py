"""A cloud's metadata service on the loopback interface."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class MetadataService:
    """What it answers to `GET /path` or `PUT /path`, and which header a question must have."""

    def __init__(self) -> None:
        self.answers: dict[str, str] = {}
        self.header = ("", "")
        self.asked: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                service.asked.append(f"{self.command} {self.path}")
                name, value = service.header
                needed = not name or self.command == "PUT" or self.headers.get(name) == value
                body = service.answers.get(f"{self.command} {self.path}") if needed else None
                self.send_response(200 if body is not None else 404 if needed else 401)
                self.end_headers()
                self.wfile.write((body or "").encode())

            do_PUT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
