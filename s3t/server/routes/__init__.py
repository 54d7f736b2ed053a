"""The routes, a file for each group of them: ``app.create_app`` includes their routers.

A file holds the schemas of its requests and responses beside the routes that use them. Those of
deletions are in ``deletions.opendsr``, since jobs and callbacks use them too; that of errors is in
``http.problems``. A route calls ``S3T`` in a thread (``Service.lookups`` for reads).
"""
