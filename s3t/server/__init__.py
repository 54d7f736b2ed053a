"""A run over HTTP (extra ``serve``): FastAPI and uvicorn are imported here and nowhere else.

    running ──► app ──► access, predictions, completions, deletions, repairs, audits, health, page
                 │            └──► batching, answers ──► state ──► problems
                 └──► traffic, limits

Importing this package loads none of them.
"""
