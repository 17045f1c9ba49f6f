"""What a provider over a ledger gives: what there is, and what a group needs beside its commitment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from lavalite.groups.embedded.utilization import Utilization
from lavalite.groups.records import GroupRecord
from lavalite.model.resources import NodeOffer
from lavalite.providers.base import ComputeResourceProvider


class Hooks(ComputeResourceProvider):
    """Only `_discover` has to be given; the others do nothing where nothing is to be done."""

    discovers_all = True
    """Whether a node that `_discover` does not name any more is gone."""
    on_one_machine = True
    """Whether all who allocate are processes of this machine, so that it can be told whether they live."""

    @abstractmethod
    async def _discover(self) -> list[NodeOffer]:
        """What there is now. A node on which nothing new may be placed has an extra field `closed`: why not."""

    def _needs_making(self, record: GroupRecord) -> bool:
        """Whether `_make` and `_unmake` have anything to do for this group, as it is now: then it is written twice,
        first with `ready` false. MIG instances and MPS, where nothing else is said."""
        return record.isolation in ("mig", "mps")

    async def _make(self, record: GroupRecord) -> GroupRecord:
        """See to it that there is what the group needs, of its present state and component; idempotent.

        Called when it was written durably with `ready` false: new groups, and such as change hands (a created one
        that is taken, or is free again). Answers with the record, with what is now known of it (`instances`); its
        shares must stay. What it raises as LavaLiteError undoes a new group.
        """
        return record

    async def _unmake(self, record: GroupRecord) -> None:
        """Remove what there is beside the commitment, before that is given back; idempotent."""

    async def _ask_to_end(self, record: GroupRecord) -> None:
        """What runs in the group is to end: it drains."""

    def _environment(self, record: GroupRecord) -> dict[str, str]:
        """What a process in the group needs in its environment."""
        return {}

    async def _busy(self, records: Sequence[GroupRecord]) -> set[str]:
        """Ids of those groups that are in use by processes."""
        return set()

    async def _utilization(self) -> Utilization:
        """Of all that this process can measure."""
        return Utilization()
