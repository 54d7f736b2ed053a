"""Every route of the service, and the roles that may use it."""

from __future__ import annotations

__all__ = ["ROUTES"]

ROUTES = (
    ("POST", "/v1/predict", {"predict"}),
    ("POST", "/v1/completions", {"predict"}),
    ("POST", "/v1/deletions", {"delete"}),
    ("GET", "/v1/deletions", {"audit"}),
    ("GET", "/v1/deletions/r1", {"delete", "audit"}),
    ("GET", "/v1/status", {"audit"}),
    ("GET", "/v1/forecast", {"audit"}),
    ("GET", "/v1/picture", {"audit"}),
    ("GET", "/v1/log", {"audit"}),
    ("GET", "/v1/replicas", {"audit"}),
    ("GET", "/v1/traffic", {"audit"}),
    ("GET", "/metrics", {"audit"}),
    ("POST", "/v1/repair", {"repair"}),
    ("GET", "/v1/repair", {"repair", "audit"}),
    ("POST", "/v1/purge", {"repair"}),
    ("POST", "/v1/reload", {"repair"}),
)
