"""A Galera cluster of three MariaDB servers on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql
from sqlalchemy import URL

from tests.faults.server import free_port
from tests.integration.support import eventually

from .servers import START, Server, _directory, _done, _program_of, missing

LIBRARY = Path("/usr/lib/galera/libgalera_smm.so")
NODES = 3

_OPTIONS = {
    "wsrep_on": "ON",
    "wsrep_provider": str(LIBRARY),
    "wsrep_cluster_name": "proletarian",
    "wsrep_sst_method": "rsync",
    "binlog_format": "ROW",
    "innodb_autoinc_lock_mode": "2",
    "innodb_flush_log_at_trx_commit": "0",
    "innodb_buffer_pool_size": "32M",
    "bind_address": "127.0.0.1",
}


class Node(Server):
    """A server of the cluster.

    :param command: the command that starts it as a member of a cluster that has members already.
    :param alone: the command that starts it as the first member.
    """

    def __init__(self, command: Sequence[str], alone: Sequence[str], url: URL, line: Path) -> None:
        super().__init__(command, url, line)
        self._alone = alone

    def bootstrap(self) -> None:
        """Start as the first member of the cluster."""
        usual, self._command = self._command, self._alone
        try:
            self.start()
        finally:
            self._command = usual

    def start(self) -> None:
        """Start the server and wait until it is a member that takes statements."""
        super().start()
        eventually(self.is_ready, START)

    def isolate(self) -> None:
        """Cut the node off from the others: it takes no statements any more."""
        self._set("gmcast.isolate=1")

    def rejoin(self) -> None:
        """Let the node find the others again."""
        self._set("gmcast.isolate=0")

    def is_ready(self) -> bool:
        """Return whether it is connected to the majority of the cluster and takes statements."""
        with suppress(pymysql.Error):
            ready: bool = self._execute("SHOW STATUS LIKE 'wsrep_ready'")[0][1] == "ON"
            return ready
        return False

    def _set(self, option: str) -> None:
        self._execute(f"SET GLOBAL wsrep_provider_options = '{option}'")

    def _execute(self, statement: str) -> Any:
        """Execute a statement as only a driver can on a node that is not ready."""
        connected = pymysql.connect(unix_socket=str(self._line), user="root")
        with closing(connected) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall()


@contextmanager
def galera_cluster() -> Iterator[list[Node]]:
    """Yield a running cluster; remove it and its files afterwards."""
    program = _program_of("mariadb")
    if not LIBRARY.exists():
        missing("galera-4")
    with ExitStack() as running:
        ports = [[free_port() for _ in range(4)] for _ in range(NODES)]
        members = ",".join(f"127.0.0.1:{port}" for _, port, *_ in ports)
        nodes: list[Node] = []
        for number, (port, group, transfer, increments) in enumerate(ports):
            directory, user = running.enter_context(_directory())
            data, line = directory / "data", directory / "socket"
            usual = [
                "--no-defaults",
                f"--user={user}",
                f"--datadir={data}",
                f"--tmpdir={directory}",
                "--innodb-use-native-aio=0",
            ]
            if number == 0:
                auth = ["--auth-root-authentication-method=normal", "--skip-test-db"]
                _done(["mariadb-install-db", *usual, *auth])
            else:  # the first member sends its data
                data.mkdir()
                _done(["chown", user, data])
            provider = {
                "base_host": "127.0.0.1",
                "base_port": group,
                "gmcast.listen_addr": f"tcp://127.0.0.1:{group}",
                "ist.recv_addr": f"127.0.0.1:{increments}",
                "gcache.size": "16M",
                "pc.recovery": "no",
            }
            options = {
                **_OPTIONS,
                "port": str(port),
                "wsrep_node_name": f"node{number}",
                "wsrep_node_address": f"127.0.0.1:{group}",
                "wsrep_sst_receive_address": f"127.0.0.1:{transfer}",
                "wsrep_provider_options": ";".join(f"{k}={v}" for k, v in provider.items()),
            }
            command = [
                program,
                *usual,
                f"--socket={line}",
                f"--pid-file={directory / 'pid'}",
                "--skip-name-resolve",
                *(f"--{name.replace('_', '-')}={value}" for name, value in options.items()),
            ]
            url = URL.create(
                "mariadb+pymysql", "root", host="localhost", query={"unix_socket": f"{line}"}
            )
            address = "--wsrep-cluster-address=gcomm://"
            node = Node([*command, address + members], [*command, address], url, line)
            nodes.append(node)
        for node in nodes:
            running.callback(node.kill)
            if node is nodes[0]:
                node.bootstrap()
            else:
                node.start()
        yield nodes
