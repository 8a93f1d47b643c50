"""A SLURM cluster of two nodes on this machine, out of Debian's slurm-wlm and munge, in a folder of its own.

The second node has two GPUs that are none. Jobs of the partition `urgent` preempt those of the default one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
HOST = socket.gethostname()
NODES = ("127.0.0.2", "127.0.0.3")  # names that this machine has: the launchers of a run meet at the first one


def missing() -> str:
    """Why there can be no cluster here; empty where there can."""
    absent = [name for name in DAEMONS if find(name) is None]
    if absent:
        return f"no {', '.join(absent)} here: apt-get install slurm-wlm munge"
    return "" if os.getuid() == 0 else "slurmd needs root"


def find(daemon: str) -> str | None:
    return shutil.which(daemon, path=f"{os.environ['PATH']}:/usr/sbin")


def configuration(root: Path, ports: list[int]) -> str:
    nodes = [
        f"NodeName={name} NodeHostname={HOST} NodeAddr=127.0.0.1 Port={port} CPUs=2 {gpus} State=UNKNOWN"
        for name, port, gpus in zip(NODES, ports[1:], ("", "Gres=gpu:2"), strict=True)
    ]
    lines = [
        "ClusterName=test",
        f"SlurmctldHost={HOST}(127.0.0.1)",
        f"SlurmctldPort={ports[0]}",
        "SlurmUser=root",
        "AuthType=auth/munge",
        f"AuthInfo=socket={root}/munge",
        f"StateSaveLocation={root}/state",
        f"SlurmdSpoolDir={root}/spool.%n",
        f"SlurmctldPidFile={root}/slurmctld.pid",
        f"SlurmdPidFile={root}/slurmd.%n.pid",
        f"SlurmctldLogFile={root}/slurmctld.log",
        f"SlurmdLogFile={root}/slurmd.%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core",
        "MpiDefault=none",
        "GresTypes=gpu",
        "SlurmdParameters=config_overrides",
        "SlurmctldParameters=preempt_send_user_signal",
        "SchedulerParameters=sched_min_interval=100000,batch_sched_delay=0",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "KillWait=5",
        *nodes,
        "PartitionName=normal Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=30",
        "PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10",
    ]
    return "\n".join(lines) + "\n"


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextlib.contextmanager
def running(root: Path) -> Iterator[Path]:
    """The daemons, while the block lasts; gives the configuration file, for SLURM_CONF."""
    (root / "state").mkdir()
    (root / "key").write_bytes(os.urandom(128))
    (root / "key").chmod(0o600)
    file = root / "slurm.conf"
    file.write_text(configuration(root, free_ports(3)))
    gpus = [f"NodeName={NODES[1]} Name=gpu File={device}\n" for device in ("/dev/null", "/dev/zero")]
    (root / "gres.conf").write_text("".join(gpus))
    munge = [
        f"--{what}={root}/{name}" for what, name in (("key-file", "key"), ("socket", "munge"), ("seed-file", "seed"))
    ]
    commands = [
        ["munged", "--foreground", "--force", *munge],
        ["slurmctld", "-D", "-c", "-f", str(file)],
        *(["slurmd", "-D", "-N", name] for name in NODES),
    ]
    environment = {**os.environ, "SLURM_CONF": str(file)}
    daemons = []
    try:
        for name, *options in commands:
            output = open(root / "daemons.log", "ab")  # noqa: SIM115
            command = [find(name) or name, *options]
            daemons.append(subprocess.Popen(command, env=environment, stdout=output, stderr=output))
            output.close()
            time.sleep(0.5)
        wait_for_nodes(environment)
        yield file
    finally:
        subprocess.run(["scancel", "--me"], env=environment)
        deadline = time.monotonic() + 30
        while subprocess.run(["squeue", "--noheader"], env=environment, capture_output=True).stdout:
            assert time.monotonic() < deadline, "jobs do not end"
            time.sleep(0.2)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
        for daemon in daemons:
            daemon.wait(timeout=30)


def wait_for_nodes(environment: dict[str, str]) -> None:
    deadline = time.monotonic() + 30
    states: list[str] = []
    while states != ["idle"] * len(NODES):
        assert time.monotonic() < deadline, f"the nodes are {states}"
        time.sleep(0.2)
        command = ["sinfo", "--noheader", "--Node", "--partition=normal", "--format=%t"]
        states = subprocess.run(command, env=environment, capture_output=True, text=True).stdout.split()
