"""HTTP of inferlets through SDK and handlers, against real servers on loopback."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from groups import until
from sdk import SdkBench
from web import Web, serve_web

import inferlet
from inferlet import http
from pieray.config import Limits
from pieray.errors import Denied, InvalidRequest, Unsupported
from pieray.host.handlers.http import MAX_RUNNING
from pieray.programs.capabilities import Capabilities
from pieray.world.http.client import HttpClient

EVERYWHERE = ("*:*",)


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve_web() as found:
        yield found


class Bench(SdkBench):
    """May go everywhere, private addresses included, unless told otherwise."""

    def __init__(
        self,
        *,
        hosts: tuple[str, ...] = EVERYWHERE,
        manifest: tuple[str, ...] = EVERYWHERE,
        private: bool = True,
        resolve: Any = None,
        **limits: float,
    ) -> None:
        super().__init__(limits=Limits(**limits), capabilities=Capabilities(http=manifest))
        self.services.http = HttpClient(hosts, allow_private=private, resolve=resolve)


@pytest.fixture
def make() -> Iterator[Any]:
    made: list[Bench] = []

    def bench(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield bench
    for one in made:
        one.close()


def test_a_request_arrives_as_it_was_made_and_the_answer_comes_back(make: Any, web: Web) -> None:
    bench = make()
    answer = bench.run(
        http.post(web.url("/echo?a=b%20c"), json={"ä": 1}, headers={"X-Mine": "yes", "Authorization": "me"})
    )
    told = answer.json()
    assert (answer.status, answer.ok, answer.url) == (200, True, web.url("/echo?a=b%20c"))
    assert (told["method"], told["path"], json.loads(told["body"])) == ("POST", "/echo?a=b%20c", {"ä": 1})
    sent = told["headers"]
    assert sent["host"] == f"127.0.0.1:{web.port}"
    assert (sent["x-mine"], sent["authorization"], sent["content-type"]) == ("yes", "me", "application/json")
    assert sent["user-agent"].startswith("pieray/")
    assert answer.header("x-told") == "yes"
    again = bench.run(http.get(web.url("/echo"))).json()["headers"]
    assert "cookie" not in again  # the server has set one


def test_a_body_of_bytes_and_a_status_that_is_no_success_are_results(make: Any, web: Web) -> None:
    bench = make()
    assert bench.run(http.get(web.url("/bytes?n=512"))).bytes == bytes(range(256)) * 2
    assert bench.run(http.request("POST", web.url("/echo"), data=b"\xff\0")).json()["body"] == "\xff\0"
    missing = bench.run(http.get(web.url("/nothing")))
    assert (missing.status, missing.text) == (404, "no such page")
    with pytest.raises(inferlet.RemoteFailed, match="404: no such page"):
        missing.raise_for_status()
    head = bench.run(http.request("HEAD", web.url("/bytes?n=512")))
    assert (head.bytes, head.header("content-length")) == (b"", "512")


@pytest.mark.parametrize(
    ("status", "method", "becomes"),
    [(301, "POST", "GET"), (302, "POST", "GET"), (303, "PUT", "GET"), (307, "POST", "POST"), (308, "PUT", "PUT")],
)
def test_redirects_are_followed_as_clients_do(make: Any, web: Web, status: int, method: str, becomes: str) -> None:
    bench = make()
    url = web.url(f"/redirect?status={status}&to=/echo")
    told = bench.run(http.request(method, url, data="body", headers={"Content-Type": "text/x"})).json()
    assert told["method"] == becomes
    assert told["body"] == ("body" if becomes == method else "")
    assert ("content-type" in told["headers"]) == (becomes == method)


def test_credentials_stay_with_the_host_they_were_given_for(make: Any, web: Web) -> None:
    with serve_web() as other:
        bench = make()
        headers = {"Authorization": "secret", "X-Api-Key": "secret", "Cookie": "secret", "X-Mine": "yes"}
        near = bench.run(http.get(web.url("/redirect?to=/echo"), headers=headers)).json()["headers"]
        assert [near.get(name.lower()) for name in headers] == ["secret", "secret", "secret", "yes"]
        far = bench.run(http.get(web.url(f"/redirect?to={other.url('/echo')}"), headers=headers)).json()["headers"]
        assert [far.get(name.lower()) for name in headers] == [None, None, None, "yes"]


@pytest.mark.parametrize(
    "to",
    [
        "http://127.0.0.1:1/",
        "http://2130706433/",
        "http://allowed.example@127.0.0.1/",
        "\\\\127.0.0.1\\",
        "//127.0.0.1/",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "gopher://x/",
        "http://0x7f.1/",
        "/\\127.0.0.1/",
        "http://metadata.google.internal/",
    ],
)
def test_a_redirect_leads_nowhere_else(make: Any, web: Web, to: str) -> None:
    bench = make(hosts=(f"127.0.0.1:{web.port}",))
    with pytest.raises(inferlet.Denied):
        bench.run(http.get(web.url(f"/redirect?to={to}")))


def test_redirects_have_an_end_and_each_is_a_call(make: Any, web: Web) -> None:
    bench, num_asked = make(), len(web.asked)
    with pytest.raises(inferlet.RemoteFailed, match="more than 5 redirects"):
        bench.run(
            http.get(
                web.url(
                    "/redirect?to=/redirect%3Fto=/redirect%253Fto=/redirect%25253Fto=/redirect"
                    "%2525253Fto=/redirect%252525253Fto=/echo"
                )
            )
        )
    assert len(web.asked) == num_asked + 6
    bench = make(http_calls=2)
    with pytest.raises(inferlet.QuotaExceeded, match="http_calls: the limit is 2"):
        bench.run(http.get(web.url("/redirect?to=/redirect%3Fto=/echo")))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[64:ff9b::7f00:1]",
        "localhost",
        "169.254.169.254",
        "[fe80::1]",
        "10.0.0.1",
        "0.0.0.0",
    ],
)
def test_private_addresses_are_denied_and_never_connected_to(make: Any, web: Web, host: str) -> None:
    bench, num_asked = make(private=False), len(web.asked)
    with pytest.raises(inferlet.Denied, match="not of the public internet"):
        bench.run(http.get(web.url("/page", host)))
    assert len(web.asked) == num_asked


def test_a_name_with_one_private_address_among_many_is_denied(make: Any, web: Web) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["1.1.1.1", "127.0.0.1"]

    bench = make(private=False, resolve=resolve)
    with pytest.raises(inferlet.Denied, match="allowed.example has the address 127.0.0.1"):
        bench.run(http.get(web.url("/page", "allowed.example")))


def test_a_name_that_changes_is_looked_up_once_per_connection(make: Any, web: Web) -> None:
    """DNS rebinding: what the second look-up would give is never connected to."""
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["169.254.169.254"]

    bench = make(resolve=resolve)
    answer = bench.run(http.get(web.url("/echo", "changes.example"))).json()
    assert asked == ["changes.example"]
    assert answer["headers"]["host"] == f"changes.example:{web.port}"  # the name, though the address is connected to
    bench = make(private=False, resolve=resolve)
    with pytest.raises(inferlet.Denied, match=r"169\.254\.169\.254"):
        bench.run(http.get(web.url("/echo", "changes.example")))
    assert len(asked) == 2


def test_each_hop_is_looked_up_and_checked_anew(make: Any, web: Web) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"] if host == "good.example" else ["0.0.0.0"]

    bench = make(resolve=resolve)
    with pytest.raises(inferlet.Denied, match=r"bad.example has the address 0\.0\.0\.0"):
        bench.run(http.get(web.url(f"/redirect?to=http://bad.example:{web.port}/page", "good.example")))


def test_the_engine_and_the_manifest_must_both_name_the_host(make: Any, web: Web) -> None:
    here = f"127.0.0.1:{web.port}"
    assert make(hosts=(here,), manifest=(here,)).run(http.get(web.url("/page"))).ok
    for hosts, manifest, text in [
        ((), (here,), "engine's"),
        ((here,), ("a.example",), "manifest"),
        ((here,), (), "capability"),
    ]:
        bench = make(hosts=hosts, manifest=manifest)
        with pytest.raises(inferlet.Denied, match=text):
            bench.run(http.get(web.url("/page")))
    with pytest.raises(inferlet.InvalidRequest, match="host pattern"):
        make(manifest=("a*b",)).run(http.get(web.url("/page")))


def test_bodies_are_bounded_as_they_come(make: Any, web: Web) -> None:
    with pytest.raises(inferlet.QuotaExceeded, match="http_bytes: the limit is 5000"):
        make(http_bytes=5000).run(http.get(web.url("/drip?n=1000")))  # it never ends
    with pytest.raises(inferlet.QuotaExceeded, match="message_bytes: the limit is 5000"):
        make(message_bytes=5000).run(http.get(web.url("/drip?n=1000")))
    with pytest.raises(inferlet.QuotaExceeded, match="message_bytes"):
        make(message_bytes=10).run(http.post(web.url("/echo"), data="x" * 11))
    with pytest.raises(inferlet.QuotaExceeded, match="http_bytes"):
        make(http_bytes=10).run(http.post(web.url("/echo"), data="x" * 11))
    bench = make(http_bytes=1000)
    assert len(bench.run(http.get(web.url("/bytes?n=768"))).bytes) == 768
    with pytest.raises(inferlet.QuotaExceeded, match="http_bytes: the limit is 1000; 768 are used"):
        bench.run(http.get(web.url("/bytes?n=768")))


def test_a_packed_body_is_unpacked_and_a_bomb_is_not(make: Any, web: Web) -> None:
    answer = make().run(http.get(web.url("/gzip?n=100000")))
    assert answer.bytes == bytes(100000)
    assert answer.header("content-encoding") == ""
    with pytest.raises(inferlet.QuotaExceeded, match="http_bytes: the limit is 50000"):
        make(http_bytes=50000).run(http.get(web.url("/gzip?n=100000")))
    with pytest.raises(inferlet.QuotaExceeded, match="message_bytes"):
        make().run(http.get(web.url("/gzip?n=50000000")))
    for encoding, text in [
        ("gzip", "ends in the middle"),
        ("br", "packed the body as 'br'"),
        ("gzip, gzip", "gzip, gzip"),
    ]:
        with pytest.raises(inferlet.RemoteFailed, match=text):
            make().run(http.get(web.url(f"/packed?as={encoding.replace(' ', '%20')}")))


def test_a_slow_server_is_a_deadline_the_callers_or_the_limits(make: Any, web: Web) -> None:
    with pytest.raises(inferlet.DeadlineExceeded, match=r"within 0.1 s"):
        make().run(http.get(web.url("/slow?s=5"), timeout=0.1))
    with pytest.raises(inferlet.DeadlineExceeded, match=r"within 0.1 s"):
        make(http_time_s=0.1).run(http.get(web.url("/drip?s=0.02"), timeout=60))


def test_a_connection_that_fails_or_breaks_is_peer_lost(make: Any, web: Web) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(inferlet.PeerLost, match="the connection with 127.0.0.1"):
            make().run(http.get(f"http://127.0.0.1:{unused.getsockname()[1]}/"))
    with pytest.raises(inferlet.PeerLost):
        make().run(http.get(web.url("/broken")))
    with pytest.raises(inferlet.PeerLost):
        make().run(http.get(f"https://127.0.0.1:{web.port}/"))  # it does not speak TLS

    async def resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror("no such name")

    with pytest.raises(inferlet.PeerLost, match="no.example cannot be resolved"):
        make(resolve=resolve).run(http.get("http://no.example/"))


def test_a_cancelled_ticket_ends_the_request_and_the_end_of_the_inferlet_all(make: Any, web: Web) -> None:
    bench = make()
    asked = [bench.handlers.http.request("GET", web.url("/drip?s=0.01"), [], "", False, 0) for _ in range(4)]
    tasks = bench.services.loop.tasks
    until(lambda: len(tasks) == 4)
    bench.handlers.tickets.cancel(np.array(asked[:1], np.uint32))
    until(lambda: len(tasks) == 3)
    bench.parts.close()
    until(lambda: not tasks)


@pytest.mark.slow
def test_many_requests_of_one_inferlet_run_at_once_and_not_too_many(make: Any, web: Web) -> None:
    bench = make()

    async def ask(count: int) -> list[Any]:
        return await asyncio.gather(*(http.get(web.url("/slow?s=0.3")) for _ in range(count)), return_exceptions=True)

    assert all(answer.text == "late" for answer in bench.run(ask(8)))
    assert web.most_slow > 1
    errors = [e for e in bench.run(ask(MAX_RUNNING + 4)) if isinstance(e, inferlet.QuotaExceeded)]
    assert len(errors) == 4
    assert bench.run(http.get(web.url("/page"))).ok  # room again, once answers were taken


def test_what_is_wrong_with_a_request_is_told_at_once(make: Any, web: Web) -> None:
    ask = make().handlers.http.request
    with pytest.raises(InvalidRequest, match="one of GET"):
        ask("CONNECT", web.url("/"), [], "", False, 0)
    with pytest.raises(InvalidRequest, match="written by the host alone"):
        ask("GET", web.url("/"), ["Host", "x"], "", False, 0)
    with pytest.raises(Denied, match="no user and password"):
        ask("GET", "http://a@b/", [], "", False, 0)
    bench = make()
    ticket = bench.handlers.http.request("POST", web.url("/echo"), [], "***", True, 0)
    bench.wait([ticket], -1)
    with pytest.raises(InvalidRequest, match="base64"):
        bench.handlers.tickets.take_text(ticket)
    with pytest.raises(inferlet.InvalidRequest, match="timeout"):
        make().run(http.get(web.url("/"), timeout=-1))
    bench = make()
    bench.services.http = None
    with pytest.raises(Unsupported):
        bench.handlers.http.request("GET", web.url("/"), [], "", False, 0)


def test_no_proxy_of_the_environment_is_used(make: Any, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    with serve_web() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url(""))
        assert make().run(http.get(web.url("/page"))).ok
        assert proxy.asked == []


def test_services_close_while_requests_run(web: Web) -> None:
    bench = Bench()
    for _ in range(3):
        bench.handlers.http.request("GET", web.url("/drip?s=0.01"), [], "", False, 0)
    bench.services.close()
    assert not [t for t in threading.enumerate() if t.name == "pieray-world"]
    with pytest.raises(Exception, match="closing"):
        bench.handlers.http.request("GET", web.url("/page"), [], "", False, 0)
    assert len(bench.tickets) == 3


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """File with the key and a certificate for good.example that nobody has signed."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=good.example",
            "-addext",
            "subjectAltName=DNS:good.example",
            "-keyout",
            file,
            "-out",
            f"{file}.crt",
        ],
        check=True,
        capture_output=True,
    )
    file.write_text(file.read_text() + (file.parent / f"{file.name}.crt").read_text())
    return str(file)


def test_certificates_are_verified_for_the_name_though_the_address_is_connected_to(make: Any, certificate: str) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    with serve_web(certificate) as web:
        url = f"https://good.example:{web.port}/echo"
        bench = make(resolve=resolve)
        with pytest.raises(inferlet.PeerLost, match="(?i)certificate"):
            bench.run(http.get(url))  # nobody we trust has signed it
        assert web.asked == []
        trusting = ssl.create_default_context(cafile=certificate)
        bench.services.http = HttpClient(EVERYWHERE, allow_private=True, resolve=resolve, ssl_context=trusting)
        assert bench.run(http.get(url)).json()["headers"]["host"] == f"good.example:{web.port}"
        assert set(web.server_names) == {"good.example"}
        with pytest.raises(inferlet.PeerLost, match="(?i)certificate|hostname"):
            bench.run(http.get(f"https://other.example:{web.port}/echo"))
