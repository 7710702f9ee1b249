"""One network in a smaller one (NeRN): fits of coordinate networks and what can be done with them."""

from __future__ import annotations
