"""A slow cable between two hosts: each has its end as eth0; what goes in at one comes out at the other, at a rate."""

import ctypes
import fcntl
import os
import struct
import sys
import threading
import time

NEW_INTERFACE, WITHOUT_ETHERNET, WITHOUT_HEADER = 0x400454CA, 0x0001, 0x1000  # TUNSETIFF, IFF_TUN, IFF_NO_PI
NET = 0x40000000  # CLONE_NEWNET
LARGEST = 65_536


def end(host_pid: int) -> int:
    """An interface of a host as a file: reading gives packets that the host sends, writing has it receive them."""
    with open(f"/proc/{host_pid}/ns/net") as namespace:
        if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), NET):
            raise OSError(ctypes.get_errno(), "setns")
    file = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(file, NEW_INTERFACE, struct.pack("16sH22x", b"eth0", WITHOUT_ETHERNET | WITHOUT_HEADER))
    return file


def carry(source: int, target: int, bytes_per_second: float) -> None:
    free = 0.0
    while True:
        try:
            packet = os.read(source, LARGEST)
            free = max(free, time.monotonic()) + len(packet) / bytes_per_second
            time.sleep(max(0.0, free - time.monotonic()))
            os.write(target, packet)
        except OSError:  # an end is gone
            os._exit(1)


if __name__ == "__main__":
    *pids, megabits = sys.argv[1:]
    ends = [end(int(pid)) for pid in pids]
    print("ready", flush=True)
    sys.stdin.readline()  # the ends are up
    for source, target in (ends, ends[::-1]):
        threading.Thread(target=carry, args=(source, target, float(megabits) * 1e6 / 8), daemon=True).start()
    sys.stdin.read()  # until the test is over
