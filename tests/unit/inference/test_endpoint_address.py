"""Which URLs may be called, as they are written and as they resolve."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aws.osml.model_runner.api.inference import ModelInvokeMode
from aws.osml.model_runner.exceptions import ModelCallError, ModelErrorClass, UnsupportedModelException
from aws.osml.model_runner.inference.endpoint_address import (
    EndpointAddress,
    checked_addresses,
    is_forbidden,
    literal_address,
    matches,
    parse_endpoint_address,
)
from aws.osml.model_runner.inference.endpoint_factory import FeatureDetectorFactory
from hostile_urls import HOSTILE_MODEL_URLS

GOOD_URLS = [
    ("http://model.example.com/invocations", EndpointAddress("http", "model.example.com", 80)),
    ("https://model.example.com", EndpointAddress("https", "model.example.com", 443)),
    ("HTTP://Model.Example.COM:8080/a?b=c", EndpointAddress("http", "model.example.com", 8080)),
    ("http://127.0.0.1:8080/invocations", EndpointAddress("http", "127.0.0.1", 8080)),
    ("http://localhost/", EndpointAddress("http", "localhost", 80)),
    ("http://10.1.2.3/", EndpointAddress("http", "10.1.2.3", 80)),
    ("http://[::1]:9000/", EndpointAddress("http", "::1", 9000)),
    ("http://model.example.com./x", EndpointAddress("http", "model.example.com", 80)),
]


@pytest.mark.parametrize(("url", "address"), GOOD_URLS)
def test_good_urls(url: str, address: EndpointAddress) -> None:
    assert parse_endpoint_address(url) == address


@pytest.mark.parametrize("url", HOSTILE_MODEL_URLS)
def test_hostile_urls_are_refused_as_written(url: str) -> None:
    with pytest.raises(UnsupportedModelException):
        parse_endpoint_address(url)


def test_refusal_shows_no_query() -> None:
    with pytest.raises(UnsupportedModelException) as caught:
        parse_endpoint_address("http://169.254.169.254/?token=hidden-thing")
    assert "hidden-thing" not in str(caught.value)
    assert "imageProcessor.name" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "entries", "is_allowed"),
    [
        ("http://model.example.com/", ["model.example.com"], True),
        ("http://MODEL.example.com/", ["Model.Example.Com"], True),
        ("http://model.example.com/", ["example.com"], False),
        ("http://model.example.com/", ["*.example.com"], True),
        ("http://a.b.example.com/", ["*.example.com"], True),
        ("http://example.com/", ["*.example.com"], False),
        ("http://badexample.com/", ["*.example.com"], False),
        ("http://model.example.com.evil.org/", ["model.example.com", "*.example.com"], False),
        ("http://model.example.com:8080/", ["model.example.com:8080"], True),
        ("http://model.example.com:8081/", ["model.example.com:8080"], False),
        ("http://model.example.com/", ["model.example.com:80"], True),
        ("https://model.example.com/", ["model.example.com:80"], False),
        ("http://model.example.com:8080/", ["*.example.com:8080"], True),
        ("http://127.0.0.1:5000/", ["127.0.0.1"], True),
        ("http://[::1]:5000/", ["[::1]:5000"], True),
        ("http://[::1]:5000/", ["::1"], True),
        ("http://localhost/", ["model.example.com"], False),
        ("http://10.0.0.1/", ["other", "10.0.0.1"], True),
        ("http://169.254.169.254/", ["169.254.169.254"], False),
    ],
)
def test_host_list_limits_calls(url: str, entries: list[str], is_allowed: bool) -> None:
    if is_allowed:
        parse_endpoint_address(url, entries)
    else:
        with pytest.raises(UnsupportedModelException):
            parse_endpoint_address(url, entries)


@given(
    suffix=st.integers(0, 0xFFFF),
    wrap=st.sampled_from(["plain", "mapped", "compat", "siit", "nat64", "6to4", "number"]),
)
def test_link_local_is_refused_in_every_wrapping(suffix: int, wrap: str) -> None:
    number = (169 << 24) | (254 << 16) | suffix
    v4 = ipaddress.IPv4Address(number)
    host = {
        "plain": str(v4),
        "mapped": f"[::ffff:{v4}]",
        "compat": f"[::{number >> 16:x}:{number & 0xFFFF:x}]",
        "siit": f"[::ffff:0:{number >> 16:x}:{number & 0xFFFF:x}]",
        "nat64": f"[64:ff9b::{number >> 16:x}:{number & 0xFFFF:x}]",
        "6to4": f"[2002:{number >> 16:x}:{number & 0xFFFF:x}::]",
        "number": str(number),
    }[wrap]
    with pytest.raises(UnsupportedModelException):
        parse_endpoint_address(f"http://{host}/")


@given(st.ip_addresses(v=4))
def test_other_ipv4_addresses_are_allowed(address: ipaddress.IPv4Address) -> None:
    assert is_forbidden(address) == (address.is_link_local or address.is_multicast)


def test_names_are_no_addresses() -> None:
    assert literal_address("model.example.com") is None
    assert literal_address("münchen.example") is None


@pytest.mark.parametrize(
    ("endpoint", "mode", "hosts", "is_good"),
    [
        ("ships-v2", ModelInvokeMode.SM_ENDPOINT, (), True),
        ("ships v2", ModelInvokeMode.SM_ENDPOINT, (), False),
        ("http://model.example.com/", ModelInvokeMode.SM_ENDPOINT, (), False),
        ("http://model.example.com/", ModelInvokeMode.HTTP_ENDPOINT, (), True),
        ("http://model.example.com/", ModelInvokeMode.HTTP_ENDPOINT, ("other",), False),
        ("ships-v2", ModelInvokeMode.HTTP_ENDPOINT, (), False),
        ("ships-v2", ModelInvokeMode.NONE, (), False),
    ],
)
def test_endpoint_is_checked_before_any_tile_is_cut(
    endpoint: str, mode: ModelInvokeMode, hosts: tuple[str, ...], is_good: bool
) -> None:
    factory = FeatureDetectorFactory(endpoint, mode, allowed_hosts=hosts)
    if is_good:
        factory.check()
    else:
        with pytest.raises(UnsupportedModelException) as caught:
            factory.check()
        assert caught.value.problems[0].field.startswith("imageProcessor.")


def answer(*addresses: str) -> list[tuple[object, ...]]:
    family = {True: socket.AF_INET6, False: socket.AF_INET}
    return [(family[":" in text], socket.SOCK_STREAM, 6, "", (text, 80)) for text in addresses]


def test_resolved_addresses_come_once_each_in_order() -> None:
    found = checked_addresses("model", 80, lambda *_args, **_kw: answer("10.0.0.2", "10.0.0.1", "10.0.0.2"))
    assert found == ["10.0.0.2", "10.0.0.1"]


@pytest.mark.parametrize("bad", ["169.254.169.254", "fe80::1%eth0", "::ffff:169.254.169.254", "fd00:ec2::254"])
def test_name_that_resolves_to_forbidden_address_is_refused(bad: str) -> None:
    with pytest.raises(ModelCallError) as caught:
        checked_addresses("rebound.example.com", 80, lambda *_args, **_kw: answer("93.184.216.34", bad))
    assert caught.value.error_class is ModelErrorClass.JOB


@given(host=st.from_regex(r"[a-z]{1,10}(\.[a-z]{1,10}){0,3}", fullmatch=True), port=st.integers(1, 65535))
def test_host_pattern_matches_own_port_only(host: str, port: int) -> None:
    address = EndpointAddress("http", host, port)
    assert matches(address, host)
    assert matches(address, f"{host}:{port}")
    assert not matches(address, f"{host}:{port + 1}")
    assert not matches(address, f"x{host}")
