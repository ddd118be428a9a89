"""OWNER/NAME on Hugging Face: huggingface_hub, unmodified, against a stand-in of the hub on this machine."""

import hashlib
import http.server
import json
import threading

import jax
import pytest

from min_llm import models
from min_llm.formats import huggingface
from tests.toys import LLAMA

COMMIT = "1" * 40
READ = """
import sys
from min_llm.formats import model
from min_llm.config import UserError
try:
    print(model.found(sys.argv[1]))
except UserError as error:
    print("refused:", error)
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """What huggingface_hub asks for a snapshot: the list of files, then each of them."""

    folder, asked = None, None

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.asked.append(self.path)
        path = self.path.split("?")[0].removeprefix("/api/models")
        if not path.startswith("/tester/toy"):
            return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = sorted(p.name for p in self.folder.iterdir())
        rest = path.removeprefix("/tester/toy").strip("/")
        if rest.startswith("tree/"):
            rows = [
                {"type": "file", "path": n, "size": (self.folder / n).stat().st_size, "oid": "0"}
                for n in files
            ]
            return self.answer(200, json.dumps(rows).encode())
        if rest == "" or rest.startswith("revision/"):
            siblings = [{"rfilename": name} for name in files]
            return self.answer(
                200, json.dumps({"id": "tester/toy", "sha": COMMIT, "siblings": siblings}).encode()
            )
        data = (self.folder / rest.split("/", 2)[2]).read_bytes()
        etag = f'"{hashlib.sha1(data).hexdigest()}"'
        return self.answer(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path):
    folder = huggingface.write(tmp_path / "toy", LLAMA, models.init(LLAMA, 0), shard_bytes=3000)
    (folder / "pytorch_model.bin").write_bytes(b"not wanted")
    handler = type("Handler", (Hub,), {"folder": folder, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_a_model_is_had_by_name(hub, tmp_path, run_python):
    handler, url = hub
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"}
    found = run_python(READ, "tester/toy", env=variables).stdout.strip().splitlines()[-1]
    cfg, params = huggingface.read(huggingface.Path(found))
    want = models.init(LLAMA, 0)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), params, want)) and cfg.dim == LLAMA.dim
    assert not any("pytorch_model" in path for path in handler.asked if "resolve" in path)
    missing = run_python(READ, "tester/none", env=variables).stdout
    assert "refused: tester/none is neither a folder here nor could it be had" in missing
