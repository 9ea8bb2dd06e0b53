"""Hosts that can be cut off silently: network namespaces, each with one link to this host.

A host is cut off by giving each end of its link a wrong hardware address for the other end: packets
leave and are dropped. Neither side gets an error, as when a machine loses power or a cable is
unplugged.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from subprocess import CalledProcessError

NOBODY = "02:00:00:00:00:ff"
"""A hardware address that no link has."""
HERE = "02:00:00:00:00:01"
THERE = "02:00:00:00:00:02"


class Host:
    """A host in its own network namespace.

    :param number: makes its names and addresses unique.
    """

    def __init__(self, number: int) -> None:
        self._name = f"faults{number}"
        # 198.18.0.0/15 is reserved for network tests; each link uses four addresses.
        base = (198 << 24) + (18 << 16) + 4 * number
        self.server = _dotted(base + 1)
        """The address at which this host reaches the server."""
        self._own = _dotted(base + 2)

    def create(self) -> None:
        """Create the namespace and its link."""
        name = self._name
        _ip(f"netns add {name}")
        _ip(
            f"link add {name} address {HERE} type veth "
            f"peer name {name} address {THERE} netns {name}"
        )
        _ip(f"addr add {self.server}/30 dev {name}")
        _ip(f"-n {name} addr add {self._own}/30 dev {name}")
        _ip(f"link set {name} up")
        _ip(f"-n {name} link set {name} up")
        self.heal()

    def remove(self) -> None:
        """Remove the link and the namespace."""
        for command in (f"link delete {self._name}", f"netns delete {self._name}"):
            with suppress(CalledProcessError):
                _ip(command)

    def within(self) -> list[str]:
        """Return the prefix of a command that runs on this host."""
        return ["ip", "netns", "exec", self._name]

    def cut(self) -> None:
        """Drop all packets in both directions."""
        self._send_to(NOBODY, NOBODY)

    def heal(self) -> None:
        """Deliver packets again."""
        self._send_to(HERE, THERE)

    def _send_to(self, here: str, there: str) -> None:
        name = self._name
        _ip(f"neigh replace {self._own} lladdr {there} nud permanent dev {name}")
        _ip(f"-n {name} neigh replace {self.server} lladdr {here} nud permanent dev {name}")


@contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Yield hosts; remove them afterwards."""
    with ExitStack() as stack:
        created = []
        for number in random.sample(range(1 << 15), count):  # parallel runs must not collide
            host = Host(number)
            stack.callback(host.remove)
            host.create()
            created.append(host)
        yield created


@cache
def why_not() -> str | None:
    """Return why hosts cannot be created here; None if they can."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("ip") is None:
        return "requires root and iproute2"
    try:
        with hosts(1):
            return None
    except CalledProcessError as error:
        return f"requires network namespaces: {error.stderr}"


def _ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, text=True)


def _dotted(number: int) -> str:
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))
