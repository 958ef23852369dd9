"""Hosts and addresses: what is taken, in which form, and what is told about the rest."""

from __future__ import annotations

import pytest

from l7proxy.authority import (
    Authority,
    AuthorityError,
    normalise_host,
    parse_authority,
)

AUTHORITIES = [
    ("a", "a", None),
    ("A.Example", "a.example", None),
    ("a.example:80", "a.example", 80),
    ("a.example.", "a.example", None),
    ("a.example.:80", "a.example", 80),
    ("my_app-1", "my_app-1", None),
    ("xn--bcher-kva.example", "xn--bcher-kva.example", None),
    ("1a", "1a", None),
    ("1.2.3.4.example", "1.2.3.4.example", None),
    ("0x7f.example", "0x7f.example", None),
    ("127.0.0.1", "127.0.0.1", None),
    ("127.0.0.1.:8080", "127.0.0.1", 8080),
    ("255.255.255.255:65535", "255.255.255.255", 65535),
    ("[::1]", "::1", None),
    ("[::1]:1", "::1", 1),
    ("[2001:DB8:0:0:0:0:0:1]:443", "2001:db8::1", 443),
    ("a" * 63 + ".b", "a" * 63 + ".b", None),
]


@pytest.mark.parametrize(("text", "host", "port"), AUTHORITIES)
def test_authority(text: str, host: str, port: int | None) -> None:
    assert parse_authority(text) == Authority(host, port)


def test_a_name_of_the_greatest_length() -> None:
    name = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert len(name) == 253
    assert normalise_host(name + ".") == name
    with pytest.raises(AuthorityError, match="longer than 253"):
        normalise_host(name + "a")


HOSTS = [
    ("A.Example.", "a.example"),
    ("127.0.0.1", "127.0.0.1"),
    ("::1", "::1"),
    ("[::1]", "::1"),
    ("0:0::0:1", "::1"),
    ("FE80::1", "fe80::1"),
]


@pytest.mark.parametrize(("text", "host"), HOSTS)
def test_host(text: str, host: str) -> None:
    assert normalise_host(text) == host
    assert normalise_host(host) == host


# What both the Host of a request and a host name of a policy refuse, and the words for it.
BAD_HOSTS = [
    ("", "the host is empty"),
    (".", "the host is empty"),
    ("a..b", "an empty label"),
    (".a", "an empty label"),
    ("a..", "an empty label"),
    ("a" * 64, "more than 63"),
    ("a b", "letters, digits"),
    (" a", "letters, digits"),
    ("a\n", "letters, digits"),
    ("a/b", "letters, digits"),
    ("a,b", "letters, digits"),
    ("a%41", "letters, digits"),
    ("ä.example", "letters, digits"),
    ("*.example", "letters, digits"),
    ("\u212a.example", "letters, digits"),  # KELVIN SIGN, whose lower case is k
    ("\uff41.example", "letters, digits"),
    ("u@a", "user information"),
    ("127.1", "IPv4"),
    ("1", "IPv4"),
    ("4294967295", "IPv4"),
    ("0x7f000001", "IPv4"),
    ("a.0x", "IPv4"),
    ("0177.0.0.1", "IPv4"),
    ("1.2.3.04", "IPv4"),
    ("1.2.3.4.5", "IPv4"),
    ("256.1.1.1", "IPv4"),
    ("example.1", "IPv4"),
    ("[::1", "not closed"),
    ("[]", "not an IPv6"),
    ("[1.2.3.4]", "not an IPv6"),
    ("[a]", "not an IPv6"),
    ("[v1.a]", "not an IPv6"),
    ("[::1::]", "not an IPv6"),
    ("[12345::]", "not an IPv6"),
    ("[fe80::1%eth0]", "zone"),
    ("[fe80::1%25eth0]", "zone"),
]


@pytest.mark.parametrize(("text", "words"), BAD_HOSTS)
def test_bad_host(text: str, words: str) -> None:
    for parse in (normalise_host, parse_authority):
        with pytest.raises(AuthorityError, match=words):
            parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:", "port"),
        ("a:0", "from 1 to 65535"),
        ("a:65536", "from 1 to 65535"),
        ("a:99999999999999999999", "port"),
        ("a:080", "port"),
        ("a:-1", "port"),
        ("a: 80", "port"),
        ("a:8 0", "port"),
        ("a:80 ", "port"),
        ("a:80\n", "port"),
        ("a:http", "port"),
        ("a:80:80", "port"),
        ("a:\u0668\u0660", "port"),
        ("[::1]:", "port"),
        ("[::1]80", "may follow"),
        ("[::1].", "may follow"),
        ("[::1]]:80", "may follow"),
        ("::1", "the host is empty"),
        (":80", "the host is empty"),
    ],
)
def test_bad_authority(text: str, words: str) -> None:
    with pytest.raises(AuthorityError, match=words):
        parse_authority(text)


def test_an_authority_error_is_a_value_error_and_does_not_repeat_the_input() -> None:
    with pytest.raises(ValueError) as caught:
        parse_authority("evil\x1b[31m")
    assert "evil" not in str(caught.value)
