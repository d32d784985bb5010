"""Starts `train.py` as people do: in processes of its own, with so many devices, on so many hosts of loopback."""

import os
import socket
import subprocess
import sys

from paths import ROOT


def start(config, workdir, *flags, devices=1, processes=1, **environment):
    """The processes of one run, started: each is a host with `devices` virtual CPU devices."""
    command = [sys.executable, str(ROOT / "train.py"), f"--config={config}", f"--workdir={workdir}", *flags]
    variables = {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "NPROC": str(2 * max(devices, 2)),
        **environment,
    }
    address = f"127.0.0.1:{free_port()}"
    together = [[]]
    if processes > 1:
        together = [
            [f"--coordinator={address}", f"--num_processes={processes}", f"--process_id={index}"]
            for index in range(processes)
        ]
    return [
        subprocess.Popen(
            command + own,
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in together
    ]


def finish(processes, timeout=300):
    """What each of them printed, once all have ended; exit codes are in `returncode`."""
    outputs = []
    for process in processes:
        try:
            outputs.append(process.communicate(timeout=timeout)[0])
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
    return outputs


def run(config, workdir, *flags, **kwargs):
    """Starts, waits, and expects success; returns what the first process printed."""
    outputs = finish(processes := start(config, workdir, *flags, **kwargs))
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return outputs[0]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
