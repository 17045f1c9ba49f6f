"""What anybody may ask, probes and load balancers among them: whether this is where the scheduler is."""

from __future__ import annotations

from fastapi import APIRouter

from lavalite.api import models
from lavalite.mbatchd.http import TheScheduler

router = APIRouter()


@router.get("/status")
async def health(scheduler: TheScheduler) -> models.Health:
    """Answered from memory, by the leader alone: on a backup nobody listens."""
    return scheduler.reader.health()
