"""What the API talks to: the desks of one running scheduler, each for one noun."""

from __future__ import annotations

from dataclasses import dataclass

from lavalite.mbatchd.changes import Changes
from lavalite.mbatchd.consoles import ConsoleDesk
from lavalite.mbatchd.definition import DefinitionDesk
from lavalite.mbatchd.hosts import HostDesk
from lavalite.mbatchd.jobs import JobDesk
from lavalite.mbatchd.nodes import NodeDesk
from lavalite.mbatchd.reader import Reader
from lavalite.mbatchd.reservations import ReservationDesk
from lavalite.mbatchd.tags import Tags


@dataclass(slots=True)
class Scheduler:
    reader: Reader
    jobs: JobDesk
    nodes: NodeDesk
    definition: DefinitionDesk
    changes: Changes
    tags: Tags
    reservations: ReservationDesk
    hosts: HostDesk
    consoles: ConsoleDesk
