"""What pods ask for: as the scheduler of Kubernetes counts it. Pure.

Of a pod counts the greater of what its containers ask for together and what any of its init containers does; those
that stay (sidecars) are of both. What the pod as a whole asks for goes before, and its overhead is added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from lightkube.utils.quantity import parse_quantity

Json = dict[str, Any]
CPU, MEMORY, STORAGE = "cpu", "memory", "ephemeral-storage"
ENDED = ("Succeeded", "Failed")


def quantity(text: str | None) -> Decimal:
    """`250m`, `16Gi`, `1e9`; 0 for none. Raises ValueError."""
    found: Decimal | None = parse_quantity(text) if text else None
    return found or Decimal(0)


def amount(resource: str, text: str | None) -> int:
    """In our units: cpu in milli-cores, all others as they are counted, rounded up."""
    found = quantity(text) * (1000 if resource == CPU else 1)
    return int(found.to_integral_value(rounding="ROUND_CEILING"))


def asked_of(pod: Json) -> Counter[str]:
    """What it asks for, by the name of the resource, in our units."""
    spec = pod.get("spec") or {}
    stays: Counter[str] = Counter()
    most: Counter[str] = Counter()
    for container in spec.get("initContainers") or []:
        asked = _requests(container)
        if container.get("restartPolicy") == "Always":
            stays += asked
            most |= stays
        else:
            most |= asked + stays
    together = sum((_requests(c) for c in spec.get("containers") or []), stays.copy()) | most
    for resource, value in _requests(spec).items():
        together[resource] = value
    overhead = spec.get("overhead") or {}
    return together + Counter({resource: amount(resource, text) for resource, text in overhead.items()})


def used_by(pods: Iterable[Json]) -> dict[str, Counter[str]]:
    """By node, what pods that are on it and have not ended ask for."""
    found: dict[str, Counter[str]] = {}
    for pod in pods:
        node = (pod.get("spec") or {}).get("nodeName")
        if node and (pod.get("status") or {}).get("phase") not in ENDED:
            found.setdefault(node, Counter()).update(asked_of(pod))
    return found


def _requests(of: Json) -> Counter[str]:
    """A limit without a request is one."""
    resources = of.get("resources") or {}
    asked = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return Counter({resource: amount(resource, text) for resource, text in asked.items()})
