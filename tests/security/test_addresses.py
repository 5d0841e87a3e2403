"""The policy on addresses and URLs, against the IANA registries and the spellings that attackers use."""

from __future__ import annotations

import ipaddress

import pytest

from webhooks.destinations.http.egress_policy import NOT_ALLOWED, UrlError, check_url, is_allowed, literal_address

# IANA IPv4 and IPv6 Special-Purpose Address Registries: every entry that is not globally reachable, and of
# those that are, or are N/A, each that leads elsewhere than it says; then what is no unicast at all.
REFUSED_RANGES = {
    "0.0.0.0/8": "this network",
    "10.0.0.0/8": "private use",
    "100.64.0.0/10": "shared address space",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link local",
    "172.16.0.0/12": "private use",
    "192.0.0.0/24": "IETF protocol assignments",
    "192.0.0.0/29": "IPv4 service continuity",
    "192.0.0.8/32": "IPv4 dummy address",
    "192.0.0.9/32": "port control protocol anycast",
    "192.0.0.170/31": "NAT64/DNS64 discovery",
    "192.0.2.0/24": "documentation (TEST-NET-1)",
    "192.88.99.0/24": "deprecated 6to4 relay anycast",
    "192.168.0.0/16": "private use",
    "198.18.0.0/15": "benchmarking",
    "198.51.100.0/24": "documentation (TEST-NET-2)",
    "203.0.113.0/24": "documentation (TEST-NET-3)",
    "224.0.0.0/4": "multicast",
    "240.0.0.0/4": "reserved",
    "255.255.255.255/32": "limited broadcast",
    "::/128": "unspecified",
    "::1/128": "loopback",
    "::/96": "IPv4-compatible",
    "64:ff9b::/96": "IPv4-IPv6 translation",
    "64:ff9b:1::/48": "IPv4-IPv6 translation, local use",
    "100::/64": "discard only",
    "100:0:0:1::/64": "dummy prefix",
    "2001::/23": "IETF protocol assignments",
    "2001::/32": "Teredo",
    "2001:2::/48": "benchmarking",
    "2001:10::/28": "deprecated ORCHID",
    "2001:db8::/32": "documentation",
    "2002::/16": "6to4",
    "3fff::/20": "documentation",
    "5f00::/16": "segment routing SIDs",
    "fc00::/7": "unique local",
    "fe80::/10": "link local",
    "fec0::/10": "site local",
    "ff00::/8": "multicast",
    "4000::/3": "not given out",
}
METADATA = [
    "169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254",
    "fe80::a9fe:a9fe",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "168.63.129.15",
    "2606:4700:4700::1111", "2001:4860:4860::8888", "2a00:1450::1", "2400::1", "2003::1", "2001:200::1",
]  # fmt: skip


def _samples(network: str) -> list[str]:
    """Return the first, a middle and the last address."""
    net = ipaddress.ip_network(network)
    return [str(net[0]), str(net[net.num_addresses // 2]), str(net[-1])]


@pytest.mark.parametrize(("network", "name"), REFUSED_RANGES.items(), ids=REFUSED_RANGES.keys())
def test_no_address_of_a_special_range_is_called(network: str, name: str) -> None:
    for text in _samples(network):
        assert not is_allowed(ipaddress.ip_address(text)), f"{text} ({name})"


@pytest.mark.parametrize("text", METADATA)
def test_no_metadata_service_is_called(text: str) -> None:
    assert not is_allowed(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_up_to_the_edges_of_the_ranges_are_called(text: str) -> None:
    assert is_allowed(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "wrapper",
    ["::ffff:{}", "::{}", "64:ff9b::{}", "64:ff9b:1::{}", "::ffff:0:{}"],
    ids=["mapped", "compatible", "nat64", "nat64-local", "translated"],
)
@pytest.mark.parametrize("inner", ["127.0.0.1", "10.0.0.1", "169.254.169.254", "168.63.129.16", "0.0.0.0"])
def test_an_inner_address_inside_ipv6_is_not_called(wrapper: str, inner: str) -> None:
    assert not is_allowed(ipaddress.ip_address(wrapper.format(inner)))


@pytest.mark.parametrize("inner", ["127.0.0.1", "10.0.0.1", "169.254.169.254"])
def test_an_inner_address_inside_a_tunnel_is_not_called(inner: str) -> None:
    bits = int(ipaddress.IPv4Address(inner))
    assert not is_allowed(ipaddress.IPv6Address((0x2002 << 112) | (bits << 80)))
    assert not is_allowed(ipaddress.IPv6Address((0x20010000 << 96) | (bits ^ 0xFFFFFFFF)))


def test_a_mapped_address_is_judged_by_what_it_maps() -> None:
    assert is_allowed(ipaddress.ip_address("::ffff:8.8.8.8"))
    allowed = [ipaddress.ip_network("10.0.0.0/8")]
    assert is_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), allowed)
    assert not is_allowed(ipaddress.ip_address("::ffff:192.168.0.1"), allowed)


def test_only_the_networks_that_the_operator_allows_are_let_in() -> None:
    allowed = [ipaddress.ip_network("10.20.0.0/16"), ipaddress.ip_network("fd12::/16")]
    assert is_allowed(ipaddress.ip_address("10.20.255.255"), allowed)
    assert is_allowed(ipaddress.ip_address("fd12::9"), allowed)
    for text in ("10.21.0.0", "127.0.0.1", "fd13::1", "::1", "169.254.169.254"):
        assert not is_allowed(ipaddress.ip_address(text), allowed)


def test_an_address_with_a_zone_is_not_called_whatever_is_allowed() -> None:
    assert not is_allowed(ipaddress.ip_address("fe80::1%eth0"), [ipaddress.ip_network("::/0")])


LOOPBACK_SPELLINGS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7F.0.0.1", "0X7F.1", "017700000001", "0177.0.0.1",
    "0177.1", "127.0.0.1.", "127.0.0.1..", "127.000.000.001", "0x7f.0x0.0x0.0x1", "[::1]", "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]", "[0:0:0:0:0:0:0:1]", "[::127.0.0.1]", "0", "0.0.0.0", "0x0", "[::]",
]  # fmt: skip
METADATA_SPELLINGS = [
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0xA9.0xFE.0xA9.0xFE", "0251.0376.0251.0376", "169.254.43518",
    "169.16689662", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]",
    "[2002:a9fe:a9fe::]", "168.63.129.16", "2822734096",
]  # fmt: skip


@pytest.mark.parametrize("host", LOOPBACK_SPELLINGS + METADATA_SPELLINGS)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_every_spelling_of_an_inner_address_is_refused_by_its_text(host: str, scheme: str) -> None:
    with pytest.raises(UrlError) as refusal:
        check_url(f"{scheme}://{host}/hook")
    if not host.endswith(".."):
        assert str(refusal.value) == NOT_ALLOWED, "the tenant learns no more than this"


def test_a_spelling_means_what_the_c_library_takes_it_for() -> None:
    assert literal_address("127.1") == ipaddress.ip_address("127.0.0.1")
    assert literal_address("0251.0376.0251.0376") == ipaddress.ip_address("169.254.169.254")
    assert literal_address("example.com") is None


@pytest.mark.parametrize(
    "url",
    [
        # user information, and what parsers disagree about
        "http://public.example@127.0.0.1/", "http://127.0.0.1@public.example/", "http://a:b@public.example/",
        "http://public.example:80@127.0.0.1:80/", "http://@127.0.0.1/", "http://public.example\\@127.0.0.1/",
        "http:\\\\127.0.0.1\\", "http://public.example\t.evil/", "http://pub\nlic.example/", "http://public.example /",
        "http:///127.0.0.1/", "http:/127.0.0.1/", "http:127.0.0.1", "//127.0.0.1/", "http://", "http://.", "http://..",
        "http://public.example:80:90/", "http://public.example:99999/", "http://public.example:-1/",
        "http://public.example:0/", "http://public.example:8o/",
        # zones, brackets and percent signs
        "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1%251]/", "http://[::1", "http://::1]/",
        "http://[v1.fe80::a]/", "http://127.0.0.1%00.example/", "http://%31%32%37.0.0.1/", "http://127%2e0.0.1/",
        # IDNA: full-width digits, circled digits, ideographic and full-width full stops, soft hyphen, ß
        "http://１２７.０.０.１/", "http://①②⑦.⓪.⓪.①/", "http://127。0。0。1/", "http://127．0．0．1/", "http://127｡0｡0｡1/",
        "http://loc\u00adalhost/", "http://ｌｏｃａｌｈｏｓｔ/", "http://metadata。google。internal/", "http://fa\u00df.example/",
        "http://\u2488\u2488/", "http://exam\u200bple.com/",
        # other schemes, ports that are nobody's webhook, fragments
        "ftp://public.example/", "file:///etc/passwd", "gopher://public.example/", "javascript:alert(1)", "data:,x",
        "unix:///run/redis.sock", "http+unix://x/", "ws://public.example/", "HTTP+X://public.example/", "",
        "http://public.example:22/", "http://public.example:25/", "http://public.example:6379/",
        "https://public.example:5432/", "http://public.example:11211/", "http://public.example/#f",
        # lengths
        "http://public.example/" + "a" * 2048, "http://" + "a" * 64 + ".example/", "http://" + "a." * 130 + "example/",
        "http://a..example/",
        # an address in another spelling is to be written plainly even when it is public
        "http://134744072/", "http://0x08080808/", "http://8.8.8.8./", "http://010.8.8.8/",
    ],
)  # fmt: skip
def test_no_url_that_could_be_read_in_two_ways_is_taken(url: str) -> None:
    with pytest.raises(UrlError):
        check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://public.example/hook?x=1", "HTTPS://PUBLIC.EXAMPLE/", "http://public.example.:8080/", "https://8.8.8.8/",
        "https://[2606:4700::1]/", "https://xn--bcher-kva.example/", "https://a_b.example/", "http://public.example",
    ],
)  # fmt: skip
def test_ordinary_urls_are_taken(url: str) -> None:
    check_url(url)


def test_only_the_ports_that_the_operator_names_are_taken() -> None:
    ports = frozenset({443, 8443})
    check_url("https://public.example/", (), ports)
    check_url("https://public.example:8443/", (), ports)
    for url in ("http://public.example/", "https://public.example:8444/"):
        with pytest.raises(UrlError, match="not allowed"):
            check_url(url, (), ports)
