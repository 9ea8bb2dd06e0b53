"""All contenders. Importing a contender does not import the library that it measures."""

from __future__ import annotations

from .contender import Contender, Role
from .floors import RawPsycopg
from .ours import (
    PlainRow,
    Proletarian,
    ProletarianInALoop,
    ProletarianLeased,
    ProletarianOnConnection,
)
from .peers.awa import Awa, AwaBest
from .peers.chancy import Chancy, ChancyBest
from .peers.oban import Oban, ObanBest
from .peers.pgqueuer import PgQueuer, PgQueuerBest
from .peers.procrastinate import Procrastinate, ProcrastinateBest

CONTENDERS: tuple[type[Contender], ...] = (
    RawPsycopg,
    Proletarian,
    ProletarianOnConnection,
    PlainRow,
    ProletarianLeased,
    ProletarianInALoop,
    PgQueuer,
    PgQueuerBest,
    Procrastinate,
    ProcrastinateBest,
    Chancy,
    ChancyBest,
    Oban,
    ObanBest,
    Awa,
    AwaBest,
)

OURS = Proletarian.name
FLOOR = RawPsycopg.name
PLAIN = PlainRow.name
CONNECTION = ProletarianOnConnection.name


def chosen(*, peers: bool, names: set[str]) -> list[type[Contender]]:
    """Return the contenders to run: all, or all that are no peers, and the named peers."""
    return [
        contender
        for contender in CONTENDERS
        if (contender.role is not Role.PEER or peers)
        and (not names or contender.name in names or contender.role is not Role.PEER)
    ]
