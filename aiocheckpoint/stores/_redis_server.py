"""What a server's settings mean for what is stored there."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ._redis_errors import NO_CLUSTER


def refusal(settings: Mapping[str, str], *, expiring: bool) -> str | None:
    """Why nothing can be kept there. `expiring`: whether our keys have a time to live."""
    if settings.get("redis_mode") == "cluster" or settings.get("cluster_enabled") == "1":
        return NO_CLUSTER
    policy = settings.get("maxmemory-policy") or settings.get("maxmemory_policy") or ""
    if policy.startswith("allkeys-") or (expiring and policy.startswith("volatile-")):
        return (
            f"the server deletes keys of its own accord when memory is short (maxmemory-policy"
            f" {policy}): set it to noeviction (CONFIG SET maxmemory-policy noeviction, and in"
            " redis.conf), or take another server"
        )
    return None


def durability(settings: Mapping[str, str]) -> tuple[int, str]:
    """What "stored" means there: how loudly to say it, and what."""
    appending = settings.get("appendonly") or {"1": "yes", "0": "no"}.get(
        settings.get("aof_enabled", "")
    )
    if appending == "no":
        if settings.get("save"):
            return logging.WARNING, (
                "stored means in the server's memory (appendonly no): its crash loses what is"
                " newer than its last snapshot"
            )
        if "save" in settings:
            return logging.WARNING, (
                "stored means in the server's memory (appendonly no, no snapshots): its end"
                " loses everything"
            )
    match settings.get("appendfsync") if appending == "yes" else None:
        case "always":
            return logging.INFO, "stored means on the server's disk (appendfsync always)"
        case "everysec":
            return logging.INFO, (
                "stored means on the server's disk within about a second (appendfsync everysec):"
                " a power cut may lose that second"
            )
        case "no":
            return logging.INFO, (
                "stored means on the server's disk when its system gets to it (appendfsync no):"
                " a power cut may lose half a minute"
            )
    return logging.INFO, (
        "what stored means there could not be found out (CONFIG GET is not allowed): look up"
        " appendonly and appendfsync with whoever runs it"
    )
