# ruff: noqa: INP001  # a script of the image, in no package
"""Ask this container's node for a page, and exit 0 when it answers 200.

`healthcheck.py /healthz` or `/readyz`. Ten containers start this every few seconds, so it imports nothing
but sockets: an HTTP library would cost more than the node spends on its clients.
"""

import os
import socket
import sys

TIMEOUT_S = 2.0
"""Below the 3 s after which Docker gives the check up, so that the reason is printed."""


def main() -> int:
    """Return 0 when the page is there, else 1 with one line that Docker keeps in the container's health log."""
    port = int(os.environ.get("ZEPHYR_HTTP", "0.0.0.0:8080").rpartition(":")[2])
    try:
        with socket.create_connection(("127.0.0.1", port), TIMEOUT_S) as connection:
            connection.sendall(f"GET {sys.argv[1]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = connection.makefile("rb").read(4096)
    except OSError as error:
        print(f"port {port}: {error}")  # noqa: T201  # Docker keeps what a check prints
        return 1
    print(answer.partition(b"\r\n\r\n")[2].decode(errors="replace"))  # noqa: T201  # the same
    return 0 if answer.split(b" ", 2)[1:2] == [b"200"] else 1


sys.exit(main())
