"""A small OpenAI-compatible server on the loopback that misbehaves on request, and counts what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-planted-secret-0123456789"


def completion(text, **more):
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}, **more}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage}


class Server:
    """``behave(question, attempt)`` says what happens: a text to answer, or one of the faults below."""

    def __init__(self, behave):
        self.behave = behave
        self.asked = Counter()
        self.times = []
        self.bodies = []
        self.headers = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                question = body["messages"][-1]["content"]
                with outer._lock:
                    outer.asked[question] += 1
                    attempt = outer.asked[question]
                    outer.times.append(time.monotonic())
                    outer.bodies.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer.under_way)
                try:
                    what = outer.behave(question, attempt)
                    with outer._lock:
                        outer.under_way -= 1
                    self.answer(what)
                except (BrokenPipeError, ConnectionResetError):
                    pass

            def answer(self, what):
                if isinstance(what, str):
                    self.send(200, json.dumps(completion(what)))
                elif isinstance(what, dict):
                    self.send(200, json.dumps(what))
                elif what[0] == "status":
                    error = {"message": f"no: {self.headers['Authorization']}", "type": "t", "code": what[2]}
                    self.send(what[1], json.dumps({"error": error}), what[3])
                elif what[0] == "raw":
                    self.send(200, what[1], content_type=what[2])
                elif what[0] == "drop":
                    self.close_connection = True
                    self.connection.close()
                elif what[0] == "trickle":  # a byte now and then, so that no single read takes long
                    payload = json.dumps(completion("late")).encode()
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", str(len(payload)))
                    self.end_headers()
                    for byte in payload:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(what[1])

            def send(self, status, text, headers=None, content_type="application/json"):
                payload = text.encode()
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(payload)))
                for name, value in (headers or {}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(payload)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._server.shutdown()
        self._server.server_close()


def status(code, *, kind=None, headers=None):
    return ("status", code, kind, headers)


def raw(text, content_type="application/json"):
    return ("raw", text, content_type)
