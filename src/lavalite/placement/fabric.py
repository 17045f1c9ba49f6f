"""The network between nodes: which ways lead from one to another, and what is free on them."""

from __future__ import annotations

from lavalite.placement.wiring import link_accounts, with_cards

__all__ = ["link_accounts", "with_cards"]
