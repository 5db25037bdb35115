import hashlib
import http.server
import threading

import pytest

from pyro_ext.data import fetch as fetching
from pyro_ext.data.fetch import fetch

CONTENT = b"pixels" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serve the content whole, corrupt, or shorter than announced."""

    def do_GET(self):
        if self.path not in ("/whole", "/corrupt", "/short"):
            return self.send_error(404)
        body = {"/whole": CONTENT, "/corrupt": CONTENT[::-1], "/short": CONTENT[:100]}[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        self.server.paths.append(self.path)


@pytest.fixture
def server():
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.paths = []
        httpd.url = f"http://127.0.0.1:{httpd.server_port}"
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield httpd
        httpd.shutdown()
        thread.join()


def test_first_mirror_serves(server, tmp_path):
    path = tmp_path / "deep" / "folder" / "file"
    fetch([f"{server.url}/whole", f"{server.url}/missing"], SHA256, path)
    assert path.read_bytes() == CONTENT
    assert server.paths == ["/whole"]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("bad", ["missing", "corrupt", "short"])
def test_second_mirror_is_used_when_the_first_fails(server, tmp_path, bad):
    path = tmp_path / "file"
    fetch([f"{server.url}/{bad}", f"{server.url}/whole"], SHA256, path)
    assert path.read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [path]


def test_second_mirror_is_used_when_nothing_listens(server, tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as idle:
        deaf = f"http://127.0.0.1:{idle.server_port}/whole"
    fetch([deaf, f"{server.url}/whole"], SHA256, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_error_names_every_mirror_its_reason_and_both_digests(server, tmp_path):
    urls = [f"{server.url}/{path}" for path in ("short", "missing")] + ["gopher-ish"]
    with pytest.raises(OSError, match="no mirror served") as info:
        fetch(urls, SHA256, tmp_path / "file")
    message = str(info.value)
    for part in (*urls, str(tmp_path / "file"), SHA256, "100 bytes", "404", "unknown url type"):
        assert part in message
    assert hashlib.sha256(CONTENT[:100]).hexdigest() in message
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_what_was_there(server, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"older")
    with pytest.raises(OSError, match="no mirror served"):
        fetch([f"{server.url}/corrupt"], SHA256, path)
    assert path.read_bytes() == b"older"


def test_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*args):
        assert any(tmp_path.rglob("file"))  # half-way, under a name that is not the final one
        assert not (tmp_path / "file").exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "_copy", interrupt)
    served = tmp_path / "served"
    served.write_bytes(CONTENT)
    with pytest.raises(KeyboardInterrupt):
        fetch([served.as_uri()], SHA256, tmp_path / "file")
    assert list(tmp_path.iterdir()) == [served]


def test_progress_bar_only_on_slow_downloads(server, tmp_path, monkeypatch, capsys):
    fetch([f"{server.url}/whole"], SHA256, tmp_path / "quick-file")
    assert "quick-file" not in capsys.readouterr().err
    monkeypatch.setattr(fetching, "_BAR_DELAY_SECONDS", 0.0)
    fetch([f"{server.url}/whole"], SHA256, tmp_path / "slow-file")
    assert "slow-file: 100%" in capsys.readouterr().err
