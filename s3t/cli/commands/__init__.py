"""The commands. Importing this package registers them; the order here is that of the help.

init        init
plan        budget, plan
train       train, repair, add, attach
status      status, samples, forecast, receipt, log, report
predict     predict, evaluate
deactivate  deactivate, purge
audit       audit
serve       serve
token       token create, token list, token revoke
export      export
sync        sync
"""
# ruff: noqa: F401, I001

from __future__ import annotations

from s3t.cli.commands import init
from s3t.cli.commands import plan
from s3t.cli.commands import train
from s3t.cli.commands import status
from s3t.cli.commands import predict
from s3t.cli.commands import deactivate
from s3t.cli.commands import audit
from s3t.cli.commands import serve
from s3t.cli.commands import token
from s3t.cli.commands import export
from s3t.cli.commands import sync

__all__: list[str] = []
