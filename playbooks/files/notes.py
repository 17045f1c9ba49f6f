"""A small service for playbooks/logical_service.yml: notes, kept on the logical host's own disk.

    GET /     what it keeps and where, as JSON
    POST /    the body is one more note

It listens on loopback alone. LAVALITE_SCRATCH is the host's disk; a host without one keeps notes in STATE_DIRECTORY.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

MOST_BYTES = 65536
FOLDER = Path(os.environ.get("LAVALITE_SCRATCH") or os.environ["STATE_DIRECTORY"])
NOTES = FOLDER / "notes"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        disk = os.statvfs(FOLDER)
        kept = NOTES.read_bytes().count(b"\n") if NOTES.exists() else 0
        self._say(
            host=os.environ.get("LAVALITE_HOST", ""),
            folder=str(FOLDER),
            disk_bytes=disk.f_blocks * disk.f_frsize,
            cores=len(os.sched_getaffinity(0)),
            notes=kept,
        )

    def do_POST(self) -> None:
        length = min(int(self.headers.get("Content-Length") or 0), MOST_BYTES)
        note = self.rfile.read(length).replace(b"\n", b" ")
        with NOTES.open("ab") as file:
            file.write(note + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.do_GET()

    def _say(self, **told: object) -> None:
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
