"""The exception tree.

Exceptions travel only where a caller must be told at once: bad settings, bad bytes, a failed etcd call.
The request path reports failure as a value (`zephyr.model.Failure`), because a refused request is an
ordinary outcome there. A programmer's mistake is an `assert`, never one of these.
"""


class ZephyrError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(ZephyrError):
    """A setting is unusable. Its text is one line for the person who wrote the setting."""


class WireError(ZephyrError):
    """Bytes from a peer break the protocol. Nothing they said was applied."""

    def __init__(self, cause: str, detail: str = "") -> None:
        """`cause` is a short stable word, used as a counter label; `detail` is for the log."""
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause


class EtcdError(ZephyrError):
    """An etcd call failed. Whether it took effect is unknown unless `definite` is true."""

    def __init__(self, detail: str, *, definite: bool = False) -> None:
        """`definite`: etcd answered, so the call certainly had no effect."""
        super().__init__(detail)
        self.definite = definite


class RequestError(ZephyrError):
    """A client's request cannot be understood or is out of bounds. Nothing was applied."""
