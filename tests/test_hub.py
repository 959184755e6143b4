"""The model card, and the way to the Hugging Face Hub and back, against a small server on this machine that speaks its protocol."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pathloop.diffusion import Generator, NetworkConfig, make_unet
from pathloop.hub import NEVER, model_card, push_to_hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    "As much of the Hub as uploading and downloading a model need."

    files: dict[str, bytes] = {}
    objects: dict[str, bytes] = {}
    said: list[dict] = []

    def log_message(self, *args: object) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def base(self) -> str:
        return f"http://{self.headers['Host']}"

    def do_POST(self) -> None:
        path, body = self.path, self.body()
        if path == "/api/repos/create":
            self.said.append(json.loads(body))
            self.answer({"url": f"{self.base}/me/cells", "name": "me/cells"})
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            self.answer({"files": [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular", "shouldIgnore": False} for f in asked]})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [{**o, "actions": {"upload": {"href": f"{self.base}/lfs/{o['oid']}"}}} for o in json.loads(body)["objects"]]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.objects[value["oid"]]
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.base}/me/cells/commit/{COMMIT}"})
        else:
            self.answer({"error": f"unknown {path}"}, 404)

    def do_PUT(self) -> None:
        data = self.body()
        assert hashlib.sha256(data).hexdigest() == self.path.rsplit("/", 1)[1]
        self.objects[self.path.rsplit("/", 1)[1]] = data
        self.answer({})

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/me/cells/tree/"):
            self.answer([{"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()} for name, data in self.files.items()])
        elif path.startswith("/api/models/me/cells"):
            self.answer({"id": "me/cells", "sha": COMMIT, "siblings": [{"rfilename": name} for name in self.files], "private": True, "tags": [], "downloads": 0, "likes": 0})
        elif "/resolve/" in path:
            self.give(path.split("/resolve/")[1].split("/", 1)[1])
        else:
            self.answer({"error": f"unknown {path}"}, 404)

    do_HEAD = do_GET

    def give(self, name: str) -> None:
        if name not in self.files:
            return self.answer({"error": "no such file"}, 404)
        data = self.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


THERE_AND_BACK = """
import torch
from pathloop.diffusion import Generator, NetworkConfig, make_unet
from pathloop.hub import model_card, push_to_hub
torch.manual_seed(0)
network = NetworkConfig(size=16, channels=(16, 32))
generator = Generator(make_unet(network, 2), ["band neutrophil", "monocyte"], network)
card = model_card(generator, "Cells", data="24 cells", licence="mit", intended_use="a test")
print("COMMIT", push_to_hub(generator, "me/cells", card, token="hf_x"))
again = Generator.from_pretrained("me/cells", "cpu")
print("SAME", again.id == generator.id, again.classes)
"""


def test_to_the_hub_and_back(hub: str, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", THERE_AND_BACK], capture_output=True, text=True, env=environment, timeout=120)
    assert "SAME True ['band neutrophil', 'monocyte']" in done.stdout, done.stderr[-3000:]
    assert f"commit/{COMMIT}" in done.stdout
    assert {"README.md", "pathloop.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"} <= set(Hub.files)
    assert not [name for name in Hub.files if name.endswith((".bin", ".pt", ".pkl"))]
    assert Hub.said[-1].get("visibility", "private" if Hub.said[-1].get("private") else "") == "private" and b"must not be used" in Hub.files["README.md"]


def test_card_says_what_readers_need() -> None:
    network = NetworkConfig(size=16, channels=(16, 32))
    generator = Generator(make_unet(network, 2), ["band neutrophil", "monocyte"], network)
    given = {"name": "Cells", "data": "24 cells", "licence": "mit", "intended_use": "a test"}
    card = model_card(generator, **given, metrics={"Judge": "88 % (n = 3)"}, never=("On Mondays.",))
    for text in (*NEVER, "On Mondays.", "24 cells", "a test", "Judge: 88 % (n = 3)", "monocyte", generator.id, "license: mit"):
        assert text in card
    for name in given:
        with pytest.raises(ValueError, match=f"{name} must say something"):
            model_card(generator, **given | {name: " "})
    with pytest.raises(ValueError, match="uses that it forbids"):
        push_to_hub(generator, "me/cells", "---\n---\n# Cells")


def test_a_folder_comes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "cells").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="must hold a saved generator"):
        Generator.from_pretrained("me/cells")
