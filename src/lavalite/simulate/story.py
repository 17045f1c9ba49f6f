"""What happens, told line by line, and by which controller.

    SchedulerController     assigns pending tasks to nodes                          control.scheduler, placement
    JobController           takes tasks from assigned to running to their end       control.starts, control.reports
    HealthController        judges nodes by how fresh their beats are               control.health
    ReschedulerController   evicts tasks from nodes that are lost, to run elsewhere control.health, control.retries

They are reconcilers of `control`: what each did is told here by its name, as it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

SCHEDULER, JOB, HEALTH, RESCHEDULER = (
    "SchedulerController",
    "JobController",
    "HealthController",
    "ReschedulerController",
)
SCENARIO = "scenario"


@dataclass(slots=True, frozen=True)
class Line:
    """`at`: seconds since the start. `who`: a controller, or the scenario."""

    at: float
    who: str
    text: str

    def __str__(self) -> str:
        return f"{clock(self.at)}  {self.who:<21}  {self.text}"


def clock(seconds: float) -> str:
    """`0:02:14`, or `1d 03:15:00`."""
    whole = int(seconds)
    days, rest = divmod(whole, 86400)
    hours, minutes = divmod(rest // 60, 60)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{rest % 60:02}"
    return f"{hours}:{minutes:02}:{rest % 60:02}"


class Story:
    """Hands each line on. Without `every_task`, tasks are left out, but for those that are evicted."""

    def __init__(self, hand_on: Callable[[Line], None], *, every_task: bool) -> None:
        self._hand_on, self.every_task = hand_on, every_task

    def tell(self, at: float, who: str, text: str) -> None:
        self._hand_on(Line(at, who, text))
