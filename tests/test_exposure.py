"""Nothing of a sweep on one machine can be reached from another one."""

import ipaddress
import os
import socket
import struct
from collections.abc import Iterable
from pathlib import Path

from benchmarks.fault_tools import descendants

LISTENING = "0A"


def listening(pid: int) -> dict[str, str]:
    """Address:port -> command of every socket on which this process or one below it listens."""
    return sockets_of([pid, *descendants(pid)])


def sockets_of(processes: Iterable[int]) -> dict[str, str]:
    """Address:port -> command of every socket on which one of these processes listens."""
    owners = {}
    for process in processes:
        for file in Path(f"/proc/{process}/fd").glob("*"):
            try:
                link = os.readlink(file)
                words = Path(f"/proc/{process}/cmdline").read_text().split("\0")
            except OSError:  # It has been closed, or the process has ended.
                continue
            if link.startswith("socket:["):
                owners[link[8:-1]] = Path(words[0]).name
    found = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == LISTENING and words[9] in owners:
                found[address_of(words[1])] = owners[words[9]]
    return found


def address_of(text: str) -> str:
    """`0100007F:1F90`, as the kernel prints it, as `127.0.0.1:8080`."""
    host, port = text.split(":")
    words = struct.unpack(f">{len(host) // 8}I", bytes.fromhex(host))
    packed = struct.pack(f"={len(words)}I", *words)
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return f"[{socket.inet_ntop(family, packed)}]:{int(port, 16)}"


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address.rpartition(":")[0].strip("[]"))
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def test_the_kernels_own_spelling_of_an_address_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as inside:
        port = inside.getsockname()[1]
        assert f"[127.0.0.1]:{port}" in listening(os.getpid())
    with socket.create_server(("0.0.0.0", 0)) as outside:
        address = f"[0.0.0.0]:{outside.getsockname()[1]}"
        assert address in listening(os.getpid()) and not is_loopback(address)
    assert is_loopback("[::1]:1") and is_loopback("[::ffff:127.0.0.1]:1")
    assert not is_loopback("[::]:1") and not is_loopback("[192.0.2.7]:1")
