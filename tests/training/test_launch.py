"""What accelerate is told: on each machine its own processes, and nothing of the others."""

from __future__ import annotations

import pytest
import torch

from s3t.errors import InputError
from s3t.training.rank import MACHINE, MACHINES
from s3t.training.work.launch import launch_command

TWO = "--num_machines 2 --machine_rank 1 --main_process_ip 10.0.0.1 --main_process_port=29500"


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def launched(options: str) -> tuple[str, dict[str, str]]:
    """The options that accelerate gets, and the environment."""
    command, environment = launch_command(["a.yaml", "stage.epochs=1"], options.split())
    assert command[1:3] == ["-m", "accelerate.commands.launch"]
    assert command[-4:] == ["-m", "s3t.train", "a.yaml", "stage.epochs=1"]
    return " ".join(command[3:-4]), environment


def test_processes_of_one_machine_are_devices_that_are_cpus() -> None:
    cpu = {"ACCELERATE_USE_CPU": "true"}
    assert launched("--num_processes 2 --cpu") == ("--multi_gpu --num_processes 2", cpu)
    assert launched("--num_processes 1") == ("--num_processes 1", cpu)
    assert launched("--multi_gpu --num_processes 2") == ("--multi_gpu --num_processes 2", cpu)


def test_each_machine_starts_its_share_by_itself() -> None:
    words, environment = launched(f"{TWO} --num_processes 4 --mixed_precision no")
    assert words == (
        "--multi_gpu --mixed_precision no --num_machines 1 --num_processes 2 --main_process_port 0"
    )
    assert (environment[MACHINE], environment[MACHINES]) == ("1", "2")
    words, _ = launched(f"--multi_gpu {TWO} --num-processes 2 --same_network --mixed_precision no")
    assert words == "--mixed_precision no --num_machines 1 --num_processes 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--num_machines 2 --num_processes 2", "--machine_rank None of 2 machines"),
        ("--num_machines 2 --num_processes 2 --machine_rank 2", "give each its own, 0 to 1"),
        ("--num_machines 2 --num_processes 3 --machine_rank 0", "a multiple of 2"),
        ("--num_machines 2 --machine_rank 0", "give the number on all of them"),
    ],
)
def test_what_does_not_say_which_machine_is_refused(options: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        launched(options)
