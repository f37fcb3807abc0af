"""Messages between a call and the warm worker: JSON behind its length, with file descriptors beside it.

    4 bytes big-endian n | n bytes of JSON, an object

Nothing that is received is run or unpickled, and nobody but this user is heard: the system says who is at the
other end (SO_PEERCRED).
"""

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any

LIMIT = 16 * 2**20  # bytes of a message: arguments and environment come to 2 MiB at the most on Linux
MAX_DESCRIPTORS = 8

Message = dict[str, Any]


class Broken(OSError):
    """The other end went away, or says what no ddgen would say."""


def connect(path: str, seconds: float) -> socket.socket:
    """Return a connection to the worker behind a socket; it waits at most `seconds` for each answer.

    Raises:
        OSError: there is none, or it is another user's.
    """
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        line.settimeout(seconds)
        line.connect(path)
        if peer(line) != os.geteuid():
            raise Broken("another user is at the other end")
    except BaseException:
        line.close()
        raise
    return line


def peer(line: socket.socket) -> int:
    """Return the user at the other end of a connection."""
    data = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])


def send(line: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    """Send one message; the descriptors travel with its first byte.

    Raises:
        OSError: nobody takes it.
    """
    data = json.dumps(message).encode()
    head = len(data).to_bytes(4, "big")
    if descriptors:
        sent = socket.send_fds(line, [head[:1]], list(descriptors))
        head = head[sent:]
    line.sendall(head + data)


def receive(line: socket.socket) -> tuple[Message, list[int]]:
    """Return the next message and the descriptors that came with it, closed on exec.

    Raises:
        Broken: the other end went away, or the message is none. OSError: it took too long.
    """
    descriptors: list[int] = []
    try:
        first, descriptors = _first(line)
        size = int.from_bytes(first + _exactly(line, 3), "big")
        if size > LIMIT:
            raise Broken(f"a message of {size} bytes")
        message = json.loads(_exactly(line, size))
        if not isinstance(message, dict):
            raise Broken("a message that is no object")
    except (ValueError, RecursionError) as error:
        close(descriptors)
        raise Broken("a message that is not JSON") from error
    except BaseException:
        close(descriptors)
        raise
    return message, descriptors


def close(descriptors: Sequence[int]) -> None:
    """Close descriptors that nobody wants."""
    for descriptor in descriptors:
        os.close(descriptor)


def _first(line: socket.socket) -> tuple[bytes, list[int]]:
    found = array.array("i")
    data, beside, flags, _ = line.recvmsg(1, socket.CMSG_SPACE(MAX_DESCRIPTORS * found.itemsize))
    for level, kind, content in beside:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(content[: len(content) - len(content) % found.itemsize])
    descriptors = list(found)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    if flags & socket.MSG_CTRUNC:
        close(descriptors)
        raise Broken("too many descriptors")
    if not data:
        close(descriptors)
        raise Broken("the other end went away")
    return data, descriptors


def _exactly(line: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = line.recv(min(size, 1 << 20))
        if not part:
            raise Broken("the other end went away")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
