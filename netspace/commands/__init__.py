"""What each command of netspace does: plain functions that return their result."""

from __future__ import annotations
