"""Server of viser, made quiet and safe: its address and port, and the pages that may connect."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import sys
import warnings
from dataclasses import dataclass
from urllib.parse import urlsplit

from nerf.runtime.errors import UserError

PORTS = 100  # that are tried


@dataclass(frozen=True)
class Address:
    """Address of a viewer, and of the page behind a tunnel or proxy that may connect."""
    host: str = '127.0.0.1'
    port: int = 8080  # the first one that is tried; 0: any free one
    origin: str | None = None  # start of that page's address, 'https://NAME[:PORT]'


def open_server(address: Address):
    """viser.ViserServer at the first free port of an address. Without viser, the address or a free port it is a
    UserError."""
    try:
        import rich
        import viser
    except ImportError as error:
        raise UserError(f'view needs viser, which cannot be imported ({error}); pip install viser') from None
    rich.reconfigure(quiet=True)  # viser prints boxes, and a line for each connection
    warnings.filterwarnings('ignore', message='Queued a .* on a closed connection')  # pages may close at any time
    server = viser.ViserServer(address.host, free_port(address.host, address.port), verbose=False)
    # A page could ask for a public address of this server; nobody shall see it through another one.
    server.request_share_url = server.disconnect_share_url = lambda *_, **__: None
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    server.gui.main_panel.dock_right()
    websockets, told = server._websock_server, False

    async def turn_strangers_away(connection) -> None:
        """Closes connections of other web pages' scripts, which could see the scene and press the buttons."""
        nonlocal told
        page = websockets._live_connections[connection.client_id]
        origin, asked = page.request.headers.get('Origin'), page.request.headers.get('Host', '')
        if not is_own_page(origin, asked, address):
            if not told:  # a refused page tries again and again
                print(refusal(origin, asked, server.get_port()), file=sys.stderr, flush=True)
            told = True
            await page.close(1008, 'opened by another web page')
    websockets.on_client_connect(turn_strangers_away)
    return server


def free_port(host: str, port: int) -> int:
    """First port from `port` on where nobody listens; 0: 0."""
    for candidate in range(port, min(port + PORTS, 2 ** 16)):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, candidate, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return candidate
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise UserError(f'the viewer cannot listen at view_host {host}, view_port {candidate} ({error}); give '
                                'an address of this machine, and a port from 1024 on') from None
    raise UserError(f'view_port {port} and the {PORTS - 1} after it are in use; give another view_port')


def is_own_page(origin: str | None, asked_host: str, address: Address) -> bool:
    """Whether a connection to a server comes from its own page, from the page that its address allows, or from a
    program that is no browser. A page of a foreign name has that name in both headers, Origin and Host, if its owner
    points it to this machine: so a loopback address accepts only names that nobody can own."""
    if origin is None:
        return True
    try:
        page, allowed = urlsplit(origin.lower()), urlsplit((address.origin or '').lower())
        name = urlsplit('//' + asked_host).hostname or ''
    except ValueError:
        return False
    if address.origin and page[:2] == allowed[:2]:  # scheme, and name with port
        return True
    return page.netloc == asked_host.lower() and (
        not is_loopback(address.host) or name == address.host or is_loopback(name))


def refusal(origin: str, asked_host: str, port: int) -> str:
    """Warning about a refused page, with what its owner can do."""
    named = origin if re.fullmatch(r'https?://[\w.:\[\]-]{1,100}', origin, re.ASCII) else 'https://NAME'
    return (f'warning: the viewer refused a page of {origin[:100]!r}, which asked for {asked_host[:100]!r}, as it '
            f"could be a stranger's. If it is yours, open http://127.0.0.1:{port} after ssh -L {port}:127.0.0.1:{port} "
            f'HOST, or give --view_origin {named}, or let the proxy keep the header Host and give --view_host 0.0.0.0')


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def address_lines(host: str, port: int, asked: int) -> str:
    """Lines that say where the viewer is, and who can see it."""
    name = {'0.0.0.0': '127.0.0.1', '::': '::1', '': '127.0.0.1'}.get(host, host)
    taken = f' (port {asked} is in use)' if asked not in (0, port) else ''
    lines = f'viewer    http://{f"[{name}]" if ":" in name else name}:{port}{taken}'
    if not is_loopback(host):
        lines += (f'\nwarning: view_host is {host}: everybody who can reach this machine can see the scene, pause '
                  "training and have pictures written to the run's folder; there is no password")
    return lines
