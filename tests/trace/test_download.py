"""Downloads over file:// and a server on 127.0.0.1; what fails leaves nothing behind."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from framework.trace.download import download

CONTENT = b"arrival_time,num_prompt_tokens,num_output_tokens\n" * 50_000  # several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing.csv":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unknown-length.csv":
            self.send_header("Content-Length", str(len(CONTENT) + (self.path == "/broken.csv")))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["trace.csv", "unknown-length.csv"])
def test_download(tmp_path: Path, server: str, name: str) -> None:
    target = tmp_path / "new" / "trace.csv"
    download(f"{server}/{name}", target, SHA256.upper())
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_without_a_published_sum_it_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source.csv"
    source.write_bytes(CONTENT)
    download(source.as_uri(), tmp_path / "trace.csv")
    assert (tmp_path / "trace.csv").read_bytes() == CONTENT
    assert f"trace.csv: SHA-256 {SHA256} (no published sum to compare it with)" in capsys.readouterr().out


def test_a_wrong_sum_leaves_nothing(tmp_path: Path, server: str) -> None:
    with pytest.raises(ValueError, match=f"SHA-256 is {SHA256}, but {'0' * 64} was expected"):
        download(f"{server}/trace.csv", tmp_path / "trace.csv", "0" * 64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "reason"), [("missing.csv", "404"), ("broken.csv", "IncompleteRead|connection ended")]
)
def test_a_failed_download_leaves_nothing(tmp_path: Path, server: str, name: str, reason: str) -> None:
    with pytest.raises(ConnectionError, match=reason):
        download(f"{server}/{name}", tmp_path / "trace.csv", SHA256)
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/trace.csv"
        with pytest.raises(ConnectionError) as error:  # nobody listens
            download(url, tmp_path / "trace.csv", SHA256)
    assert f"could not download {url} to {tmp_path}/trace.csv: " in str(error.value)
    assert f"put the file (SHA-256 {SHA256}) there" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("framework.trace.download.TIMEOUT", 0.1)
    mute = socket.create_server(("127.0.0.1", 0))  # accepts, never answers
    with mute, pytest.raises(ConnectionError, match="timed out"):
        download(f"http://127.0.0.1:{mute.getsockname()[1]}/trace.csv", tmp_path / "trace.csv")
    assert list(tmp_path.iterdir()) == []
