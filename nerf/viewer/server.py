"""Server of viser, made quiet and safe: its address and port, and the pages that may connect."""

from __future__ import annotations

import errno
import ipaddress
import socket
import warnings
from urllib.parse import urlsplit

from nerf.runtime.errors import UserError

PORTS = 100  # that are tried


def open_server(host: str, port: int):
    """viser.ViserServer at the first free port from `port` on; 0: any free one. Without viser, the address or a free
    port it is a UserError."""
    try:
        import rich
        import viser
    except ImportError as error:
        raise UserError(f'view needs viser, which cannot be imported ({error}); pip install viser') from None
    rich.reconfigure(quiet=True)  # viser prints boxes, and a line for each connection
    warnings.filterwarnings('ignore', message='Queued a .* on a closed connection')  # pages may close at any time
    server = viser.ViserServer(host, free_port(host, port), verbose=False)
    # A page could ask for a public address of this server; nobody shall see it through another one.
    server.request_share_url = server.disconnect_share_url = lambda *_, **__: None
    server.gui.configure_theme(show_logo=False, show_share_button=False)
    server.gui.main_panel.dock_right()
    websockets = server._websock_server

    async def turn_strangers_away(connection) -> None:
        """Closes connections of other web pages' scripts, which could see the scene and press the buttons."""
        page = websockets._live_connections[connection.client_id]
        if not is_own_page(page.request.headers.get('Origin'), page.request.headers.get('Host', ''), host):
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


def is_own_page(origin: str | None, asked_host: str, host: str) -> bool:
    """Whether a connection to a server at `host` comes from its own page, or from a program that is no browser. A page
    of a foreign name has that name in both headers, Origin and Host, if its owner points it to this machine: so a
    loopback address accepts only names that nobody can own."""
    if origin is None:
        return True
    try:
        name = urlsplit('//' + asked_host).hostname or ''
        same = urlsplit(origin).netloc == asked_host
    except ValueError:
        return False
    return same and (not is_loopback(host) or name == host or is_loopback(name))


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
