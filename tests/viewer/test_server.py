"""nerf/viewer/server.py: where the viewer listens, and who may connect."""

import socket
import sys

import pytest

from nerf.runtime.errors import UserError
from nerf.viewer.server import Address, address_lines, free_port, is_loopback, is_own_page, open_server, refusal


def test_a_port_in_use_is_passed_over():
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port('127.0.0.1', port) > port
    assert free_port('127.0.0.1', 0) == 0


def test_the_line_says_which_port_it_is_and_that_another_was_in_use():
    assert address_lines('127.0.0.1', 8080, 8080) == 'viewer    http://127.0.0.1:8080'
    assert address_lines('127.0.0.1', 8081, 8080) == 'viewer    http://127.0.0.1:8081 (port 8080 is in use)'
    assert address_lines('::1', 40000, 0) == 'viewer    http://[::1]:40000'


def test_who_can_see_it_is_said_where_it_is_not_this_machine_alone():
    lines = address_lines('0.0.0.0', 8080, 8080).splitlines()
    assert lines[0] == 'viewer    http://127.0.0.1:8080'
    assert 'everybody who can reach this machine' in lines[1]


@pytest.mark.parametrize('host', ['192.0.2.1', 'no-such-name.invalid'])
def test_an_address_of_another_machine_is_one_line(host):
    with pytest.raises(UserError, match=f'cannot listen at view_host {host}'):
        free_port(host, 8080)


def test_a_missing_viser_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'viser', None)
    with pytest.raises(UserError, match='pip install viser'):
        open_server(Address(port=0))


def test_loopback_addresses_are_known():
    assert all(map(is_loopback, ['127.0.0.1', '127.1.2.3', '::1', 'localhost']))
    assert not any(map(is_loopback, ['0.0.0.0', '::', '192.168.1.2', 'example.org']))


@pytest.mark.parametrize(('origin', 'asked', 'host', 'own'), [
    (None, '127.0.0.1:8080', '127.0.0.1', True),  # no browser
    ('http://127.0.0.1:8080', '127.0.0.1:8080', '127.0.0.1', True),
    ('http://localhost:9000', 'localhost:9000', '127.0.0.1', True),  # through a tunnel
    ('http://evil.example', '127.0.0.1:8080', '127.0.0.1', False),  # another page
    ('http://127.0.0.1:3000', '127.0.0.1:8080', '127.0.0.1', False),
    ('null', '127.0.0.1:8080', '127.0.0.1', False),
    ('http://evil.example:8080', 'evil.example:8080', '127.0.0.1', False),  # a name that was pointed here
    ('http://machine:8080', 'machine:8080', '0.0.0.0', True),  # view_host asks for that
    ('http://evil.example', 'machine:8080', '0.0.0.0', False),
    ('http://[broken', 'machine:8080', '0.0.0.0', False),
])
def test_pages_of_others_are_known(origin, asked, host, own):
    assert is_own_page(origin, asked, Address(host)) is own


@pytest.mark.parametrize(('origin', 'allowed', 'own'), [
    ('https://lab.example', 'https://lab.example', True),
    ('https://lab.example', 'https://LAB.example/', True),
    ('https://lab.example:8443', 'https://lab.example', False),
    ('http://lab.example', 'https://lab.example', False),
    ('https://evil.example', 'https://lab.example', False),
    ('https://lab.example.evil.example', 'https://lab.example', False),
    ('null', 'https://lab.example', False),
    ('null', None, False),
    ('http://localhost:8080', 'https://lab.example', True),  # the tunnel is not the only way
])
@pytest.mark.parametrize('asked', ['localhost:8080', '127.0.0.1:8080'])
def test_a_page_behind_a_proxy_is_allowed_by_its_origin(origin, allowed, own, asked):
    same = origin != 'http://localhost:8080' or asked == 'localhost:8080'
    assert is_own_page(origin, asked, Address(origin=allowed)) is (own and same)


def test_a_refusal_says_what_the_owner_can_do_and_shows_no_control_characters():
    line = refusal('https://lab.example', '127.0.0.1:8081', 8081)
    for advice in ('ssh -L 8081:127.0.0.1:8081', '--view_origin https://lab.example,', 'keep the header Host'):
        assert advice in line
    assert '--view_origin https://NAME,' in refusal('null', 'x', 8080)
    hostile = refusal('https://a.example\x1b[2J; rm -rf ~' + 'x' * 9000, '\x07' * 9000, 8080)
    assert hostile.isprintable()
    assert len(hostile) < 1200
