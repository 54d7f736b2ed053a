"""A run served over HTTP (extra ``serve``). Only this package imports FastAPI and uvicorn.

    process     socket, signals, file limits        app         middleware and routes
    state       what the routes share               routes/     each file: routes and their schemas
    security/   tokens, rates, body limits          deletions/  requests, jobs, callbacks
    work/       thread pools, batches, repair       http/       connections, errors, responses
    logs, metrics, report (the page as one file)    page/       the page itself

``process`` imports ``app``, ``app`` imports ``routes``, and ``routes`` import ``state``; importing
this package alone loads none of them.
"""
