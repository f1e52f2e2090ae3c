"""A server that nobody trusts: what it may answer is bounded in size and time, and every failure is typed."""

import re
import threading

import pytest

from aiao_diffusers.errors import BeaconError, ConfigError, TimestampError
from aiao_diffusers.protocol.web import request_bytes
from tests.protocol._server import serve


def ask(url, **changes):
    settings = {"headers": {"Accept": "text/plain"}, "timeout": 10.0, "limit": 100, "error": BeaconError, **changes}
    return request_bytes(url, **settings)


def test_sends_body_and_headers_and_returns_the_answer():
    with serve(lambda path, body: (200, b"got " + body)) as (url, seen):
        assert ask(f"{url}/a", body=b"question") == b"got question"
        assert ask(f"{url}/b") == b"got "
    assert [path for path, _ in seen] == ["/a", "/b"]
    assert all(headers["Accept"] == "text/plain" and headers["User-Agent"] == "aiao_diffusers" for _, headers in seen)


def test_the_limit_holds_to_the_byte():
    with serve(lambda path, body: (200, b"x" * int(path[1:]))) as (url, _):
        assert len(ask(f"{url}/100")) == 100
        for size in (101, 10**6):
            with pytest.raises(BeaconError, match="more than 100 bytes"):
                ask(f"{url}/{size}")


@pytest.mark.parametrize("status", [400, 404, 500])
def test_a_refusal_names_its_status(status):
    with serve(lambda path, body: (status, b"no")) as (url, _):
        with pytest.raises(TimestampError, match=rf"{re.escape(url)}.*HTTP status {status}"):
            ask(url, error=TimestampError)


def test_a_server_that_does_not_answer_in_time():
    release = threading.Event()

    def slow(path, body):
        release.wait(10)
        return 200, b""

    with serve(slow) as (url, _):
        with pytest.raises(BeaconError, match="did not answer .*timed out"):
            ask(url, timeout=0.2)
        release.set()


def test_nobody_listens():
    with serve(lambda path, body: (200, b"")) as (url, _):
        pass
    with pytest.raises(BeaconError, match="did not answer .*refused"):
        ask(url)


@pytest.mark.parametrize("url", ["", "example.org", "file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x"])
def test_only_http(url):
    with pytest.raises(ConfigError, match="no http or https address"):
        ask(url)


@pytest.mark.parametrize(
    "url", ["http://", "http://[", "http://127.0.0.1:x/", "http://127.0.0.1/a b", "http://127.0.0.1\n/"]
)
def test_a_broken_address(url):
    with pytest.raises(BeaconError, match="did not answer"):
        ask(url)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), 1e9])
def test_a_timeout_is_bounded(timeout):
    with pytest.raises(ConfigError, match="timeout"):
        ask("http://127.0.0.1/", timeout=timeout)
