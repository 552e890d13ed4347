"""Ceph's S3 gateway on one machine: a monitor, one OSD in memory, and the gateway itself."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ..servers import free_port, missing
from .objects import Service, answers

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")
_FSID = "5f2c1f9e-7d43-4a86-9b1e-0c8f6a2d4b70"
_OSD = "9a6e4d2b-1c3f-4e5a-8b7d-6f0e2c4a8d13"
_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{port}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr2 = false
ms bind ipv6 = false
auth cluster required = none
auth service required = none
auth client required = none
run dir = {home}
admin socket = {home}/$name.asok
pid file = {home}/$name.pid
log file = {home}/$name.log
log to stderr = false
mon data = {home}/mon
osd data = {home}/osd
osd objectstore = memstore
memstore device bytes = 3221225472
osd class load list = *
osd class default list = *
osd crush chooseleaf type = 0
osd class update on start = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon osd min up ratio = 0
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = true
crush location hook =
setuser match path =
rgw data = {home}/rgw
rgw enable lc threads = false
rgw enable gc threads = false
rgw enable usage log = false
"""


@functools.cache
def ceph() -> Service:
    """A gateway, started once, in 12 seconds or so; a test that wants it skips where it is not
    installed, unless AIOCHECKPOINT_CEPH is set."""
    if not all(map(shutil.which, PROGRAMS)):
        install = (
            "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common"
            " (Debian, Ubuntu)"
        )
        if os.environ.get("AIOCHECKPOINT_CEPH"):
            missing("Ceph", install)
        pytest.skip(f"no Ceph here: {install}")
    for _ in range(3):  # its parts wait for each other in ways that do not always end
        home = Path(tempfile.mkdtemp(prefix="aiocheckpoint-ceph-"))
        atexit.register(_stop, home)
        try:
            return _start(home)
        except (subprocess.SubprocessError, OSError) as exc:
            failure = f"{exc}\n{(home / 'out').read_text()[-2000:]}"
            _stop(home)
    pytest.fail(f"Ceph does not start: {failure}")


def _start(home: Path) -> Service:
    for name in ("mon", "osd", "rgw"):
        (home / name).mkdir()
    monitor, gateway = free_port(), free_port()
    configuration = home / "ceph.conf"
    configuration.write_text(_CONFIGURATION.format(fsid=_FSID, port=monitor, home=home))

    def call(program: str, *args: str) -> None:
        command = [program, "-c", str(configuration), *args]
        with (home / "out").open("a") as out:  # a daemon would keep a pipe open
            subprocess.run(command, stdout=out, stderr=out, timeout=20, check=True)

    monmap = str(home / "monmap")
    address = f"[v1:127.0.0.1:{monitor}]"
    call("monmaptool", "--create", "--clobber", "--fsid", _FSID, "--addv", "a", address, monmap)
    call("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
    call("ceph-mon", "-i", "a")
    call("ceph", "osd", "new", _OSD)
    call("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", _OSD)
    call("ceph-osd", "-i", "0")
    keys = ("--access-key=test", "--secret-key=testsecret")
    call("radosgw-admin", "user", "create", "--uid=t", "--display-name=t", *keys)
    front = f"beast endpoint=127.0.0.1:{gateway}"
    call("radosgw", "-n", "client.rgw.a", "--rgw-frontends", front)
    answers(f"http://127.0.0.1:{gateway}", 60)
    return Service(f"http://127.0.0.1:{gateway}", "test", "testsecret")


def _stop(home: Path) -> None:
    pids = [int(path.read_text()) for path in home.glob("*.pid")]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < until:
        time.sleep(0.05)
    shutil.rmtree(home, ignore_errors=True)
