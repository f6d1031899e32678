"""Where an inferlet may not go: every spelling of a private address, every URL that can be read in two ways."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pieray.errors import ConfigError, Denied, InvalidRequest
from pieray.programs.capabilities import ALL, Capabilities
from pieray.world.http.addresses import is_public, parse, refused
from pieray.world.http.policy import (
    HostPattern,
    Policy,
    across_origins,
    check_headers,
    check_method,
    covers,
    parse_patterns,
    read_url,
)

ANY = parse_patterns(["*:*"])

NOT_CANONICAL = [
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://017700000001/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://127.0.0.01/",
    "http://0/",
    "http://0x/",
    "http://1.2.3.4.5/",
    "http://a.0x7f/",
    "http://a.b.1/",
    "http://127.0.0.1./",
    "http://localhost./",
    "http://256.1.1.1/",
    "http://127%2e0.0.1/",
    "http://%31%32%37.0.0.1/",
    "http://localhost%00.example.org/",
    "http://loc%61lhost/",
    "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "http://ⓛocalhost/",
    "http://127。0。0。1./",
    "http://[::1%25lo]/",
    "http://[fe80::1%lo]/",
    "http://[::1/",
    "http://::1/",
    "http://[127.0.0.1]/",
    "http://[]/",
    "http://[v1.a]/",
    "http://[::1].example.org/",
    "http:///etc/passwd",
    "http://?x",
    "http://#x",
    "http://:80/",
    "http://-a.example/",
    "http://a..b/",
    "http://a b/",
    "http://exa mple.org/",
    "http://ex<ample.org/",
    "http://example.org:0/",
    "http://example.org:99999/",
    "http://example.org:80:90/",
    "http://example.org:8a/",
    "http://example.org:-1/",
    "http://" + "a" * 64 + ".org/",
    "http://" + "a." * 200 + "org/",
]

TWO_READINGS = [
    "http://allowed.example@127.0.0.1/",
    "http://127.0.0.1@allowed.example/",
    "http://user:password@allowed.example/",
    "http://@allowed.example/",
    "http://allowed.example:80@127.0.0.1/",
    "http://a@b@c/",
    "http://allowed.example\\@127.0.0.1/",
    "http://127.0.0.1\\.allowed.example/",
    "http:\\\\127.0.0.1\\",
    "http://127.0.0.1\\@allowed.example/",
    "http://allowed.example/a\\b",
    "http://allowed.example\t/",
    "http://allowed.example/\r\nHost: 127.0.0.1",
    "http://allowed\n.example/",
    " http://allowed.example/",
    "http://allowed.example/ ",
    "http://allowed.example/\0",
    "http://allowed.example/\x7f",
    "http://a\x85b/",
]


@pytest.mark.parametrize("url", NOT_CANONICAL + TWO_READINGS)
def test_a_url_that_can_be_read_in_two_ways_is_denied(url: str) -> None:
    with pytest.raises(Denied):
        read_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "//example.org",
        "ftp://example.org/",
        "file:///etc/passwd",
        "gopher://127.0.0.1/",
        "javascript:1",
        "http:example.org",
        "http:/example.org",
        "https+unix://x/",
        "http://a/" + "x" * 8192,
    ],
)
def test_what_is_no_url_of_http_is_invalid(url: str) -> None:
    with pytest.raises(InvalidRequest):
        read_url(url)
    with pytest.raises(Denied):
        Policy(ANY, ANY).check_redirect(url)


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        ("http://Example.ORG/x?y#z", "example.org", 80),
        ("https://example.org", "example.org", 443),
        ("https://example.org:8443/@a", "example.org", 8443),
        ("http://1.2.3.4/", "1.2.3.4", 80),
        ("http://[2606:4700:0:0::1]:81/", "2606:4700::1", 81),
        ("http://münchen.example/", "xn--mnchen-3ya.example", 80),
        ("http://a_b.example/", "a_b.example", 80),
        ("http://x.example?@127.0.0.1/", "x.example", 80),
        ("http://x.example#@127.0.0.1/", "x.example", 80),
        ("http://a-1.b2c/", "a-1.b2c", 80),
    ],
)
def test_a_plain_url_is_read_as_it_will_be_connected_to(url: str, host: str, port: int) -> None:
    target = read_url(url)
    assert (target.host, target.port) == (host, port)
    connected = target.url.raw_host.decode()
    assert connected == host or parse(connected) == parse(host)


PRIVATE = [
    "127.0.0.1",
    "127.255.255.254",
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "192.88.99.1",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "fd00:ec2::254",
    "ff02::1",
    "2001:db8::1",
    "100::1",
    "3fff::1",
    "5f00::1",
    "4000::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::169.254.169.254",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::1",
    "2002:c0a8:101::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "2001::1",
    "2001:20::1",
    "2606:4700::5efe:7f00:1",
    "2606:4700::200:5efe:10.0.0.1",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.1",
    "172.15.0.1",
    "172.32.0.1",
    "169.253.0.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00:1450:4001::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_that_is_not_of_the_public_internet_is_refused(text: str) -> None:
    assert refused(["1.1.1.1", text], allow_private=False) == text


@pytest.mark.parametrize("text", PUBLIC)
def test_a_public_address_is_not_refused(text: str) -> None:
    assert refused([text], allow_private=False) is None


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:0.0.0.0", "no address"]
)
def test_what_names_no_host_is_refused_even_where_private_addresses_are_allowed(text: str) -> None:
    assert refused([text], allow_private=True) == text
    assert refused(["127.0.0.1", "::1", "fe80::1", "10.1.1.1"], allow_private=True) is None


IPV4 = st.ip_addresses(v=4)


@given(IPV4)
def test_no_embedding_of_an_address_is_more_public_than_the_address(inner: ipaddress.IPv4Address) -> None:
    value = int(inner)
    outer = [
        0xFFFF << 32 | value,
        0x64FF9B << 96 | value,
        0x2002 << 112 | value << 80,
        value,
        0x26064700 << 96 | 0x5EFE << 32 | value,
        0xFFFF << 48 | value,
    ]
    for number in outer:
        assert is_public(inner) or not is_public(ipaddress.IPv6Address(number))


@given(st.ip_addresses())
def test_no_address_that_python_calls_private_is_public_here(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    unwrapped = getattr(address, "ipv4_mapped", None) or address
    special = unwrapped.is_private or unwrapped.is_multicast or unwrapped.is_reserved
    if special or unwrapped.is_loopback or unwrapped.is_link_local:
        nat64 = isinstance(unwrapped, ipaddress.IPv6Address) and unwrapped in ipaddress.ip_network("64:ff9b::/96")
        assert not is_public(address) or nat64


def spellings(value: int, draw: int) -> str:
    """One of the ways in which inet_aton and browsers take an IPv4 address."""
    parts = [value >> 24, value >> 16 & 255, value >> 8 & 255, value & 255]
    groups = [parts, [*parts[:2], value & 0xFFFF], [parts[0], value & 0xFFFFFF], [value]][draw % 4]
    forms = [str, hex, lambda n: f"0{n:o}", lambda n: f"{n:#010x}", lambda n: f"{n:05d}"]
    return ".".join(forms[(draw >> 4 * i) % 5](n) for i, n in enumerate(groups, 1)) + ("." if draw >> 30 & 1 else "")


@given(
    st.sampled_from(["127.0.0.0/8", "10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"]),
    st.integers(0, 2**24 - 1),
    st.integers(0, 2**31 - 1),
    st.sampled_from(["http", "https", "HTTP"]),
    st.sampled_from(["", ":80", ":8080"]),
)
def test_no_spelling_of_a_private_address_passes(net: str, low: int, draw: int, scheme: str, port: str) -> None:
    network = ipaddress.IPv4Network(net)
    value = int(network.network_address) | low & int(network.hostmask)
    url = f"{scheme}://{spellings(value, draw)}{port}/"
    try:
        target = Policy(ANY, ANY).check(url)
    except Denied:
        return
    assert target.host == str(ipaddress.IPv4Address(value))  # in full, so that the check of addresses sees it
    assert refused([target.host], allow_private=False) is not None


@given(
    st.text(max_size=40),
    st.sampled_from(["http://{}", "http://a.example{}", "http://{}a.example/", "https://a.example/{}"]),
)
def test_whatever_is_given_the_host_that_is_checked_is_the_host_that_is_connected_to(text: str, form: str) -> None:
    try:
        target = read_url(form.format(text))
    except (Denied, InvalidRequest):
        return
    connected = target.url.raw_host.decode("ascii")
    assert connected == target.host or parse(connected) == parse(target.host)
    assert not target.url.userinfo
    authority = str(target.url).split("://", 1)[1]
    assert not set(target.host) & set("@\\/?# ")
    assert authority.startswith((target.host, "["))


@pytest.mark.parametrize(
    ("pattern", "matches", "does_not"),
    [
        (
            "example.org",
            ["http://example.org/", "https://EXAMPLE.org/"],
            ["http://example.org:8080/", "http://a.example.org/", "http://xexample.org/", "https://example.org:80/"],
        ),
        (
            "*.example.org",
            ["https://a.example.org/", "https://a.b.example.org/"],
            ["https://example.org/", "https://aexample.org/", "https://example.org.evil.example/"],
        ),
        ("example.org:8080", ["http://example.org:8080/"], ["http://example.org/"]),
        ("example.org:*", ["http://example.org:8080/", "http://example.org/"], ["http://b.example.org/"]),
        ("127.0.0.1:81", ["http://127.0.0.1:81/"], ["http://127.0.0.1/"]),
        ("[0::1]:81", ["http://[::1]:81/"], ["http://[::1]/", "http://[::2]:81/"]),
        ("::1", ["http://[::1]/"], ["http://[::1]:81/"]),
        ("*", ["http://example.org/", "https://1.2.3.4/"], ["http://example.org:8080/"]),
    ],
)
def test_host_patterns(pattern: str, matches: list[str], does_not: list[str]) -> None:
    found = HostPattern.parse(pattern)
    assert [url for url in [*matches, *does_not] if found.matches(read_url(url))] == matches


@pytest.mark.parametrize(
    "text", ["", "a*.example", "http://example.org", "*.*", "a b", "example.org:x", "*.127.0.0.1", "a/b"]
)
def test_a_pattern_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match="host pattern"):
        print(HostPattern.parse(text))


def test_both_lists_must_name_the_host() -> None:
    engine, manifest = parse_patterns(["*.example.org"]), parse_patterns(["api.example.org", "other.example"])
    policy = Policy(engine, manifest)
    assert policy.check("https://api.example.org/").host == "api.example.org"
    with pytest.raises(Denied, match="engine's http_hosts does not name other.example:443"):
        policy.check("https://other.example/")
    with pytest.raises(Denied, match="manifest does not name www.example.org:443"):
        policy.check("https://www.example.org/")


@pytest.mark.parametrize(
    "headers",
    [
        ["Host", "evil"],
        ["content-length", "0"],
        ["Transfer-Encoding", "chunked"],
        ["Connection", "close"],
        ["Proxy-Authorization", "x"],
        ["PROXY-connection", "x"],
        ["TE", "trailers"],
        ["Upgrade", "h2c"],
        ["Accept-Encoding", "br"],
        ["Expect", "100-continue"],
        ["X-A", "a\r\nHost: evil"],
        ["X-A", "a\nb"],
        ["X-A", "a\0b"],
        ["X-A: b\r\nHost", "evil"],
        ["X A", "b"],
        ["", "b"],
        ["X-A", "\u20ac"],
        ["X-Ä", "b"],
        ["X-A"],
        ["X-A", "x" * 40000],
    ],
)
def test_headers_that_are_the_hosts_or_carry_more_than_one_are_refused(headers: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        check_headers(headers)


def test_methods_and_headers_that_are_fine() -> None:
    assert check_headers(["X-A", "ü\tb", "x-a", ""]) == [("X-A", "ü\tb"), ("x-a", "")]
    assert check_method("PATCH") == "PATCH"
    for method in ("CONNECT", "TRACE", "get", "GET /", ""):
        with pytest.raises(InvalidRequest, match="one of GET"):
            check_method(method)


def test_no_credential_goes_to_another_origin() -> None:
    names = ["Authorization", "Cookie", "X-Api-Key", "X-Auth-Token", "X-Amz-Security-Token", "Accept", "X-Trace"]
    assert [name for name, _ in across_origins([(n, "v") for n in names])] == ["Accept", "X-Trace"]


@pytest.mark.parametrize(
    ("pattern", "port", "is_allowed"),
    [
        ("*", 443, True),
        ("*", 8443, False),
        ("*:*", 443, True),
        ("*:*", 8443, True),
        ("*:8443", 8443, True),
        ("*:8443", 443, False),
        ("example.org:*", 8443, True),
        ("*.example.org:*", 8443, False),
    ],
)
def test_a_host_alone_is_its_default_port_and_the_refusal_says_what_to_write(
    pattern: str, port: int, is_allowed: bool
) -> None:
    policy = Policy(ANY, parse_patterns([pattern]))
    url = f"https://example.org:{port}/"
    if is_allowed:
        assert policy.check(url).port == port
    else:
        with pytest.raises(Denied) as raised:
            policy.check(url)
        assert ("write example.org:8443, example.org:* or *:*" in str(raised.value)) is (port != 443)


PATTERNS = ["*", "*:*", "*:81", "a.b", "a.b:*", "a.b:81", "*.b", "*.b:81", "c.a.b", "1.2.3.4", "b"]
TARGETS = [f"http://{host}:{port}/" for host in ("a.b", "c.a.b", "b", "x", "1.2.3.4") for port in (80, 81)]


@pytest.mark.parametrize("mine", PATTERNS)
@pytest.mark.parametrize("most", PATTERNS)
def test_a_child_reaches_no_host_or_port_that_its_parent_does_not(mine: str, most: str) -> None:
    kept = Capabilities(http=(mine,)).within(Capabilities(http=(most,))).http
    for url in map(read_url, TARGETS):
        if any(pattern.matches(url) for pattern in parse_patterns(kept)):
            assert HostPattern.parse(most).matches(url), (kept, url)
        elif HostPattern.parse(mine).matches(url) and covers(most, mine):
            pytest.fail(f"{most} covers {mine}, yet {url} is lost")
    assert Capabilities(http=(mine,)).within(ALL).http == (mine,)
