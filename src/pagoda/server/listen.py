"""The listening socket, made before anything heavy is imported or loaded."""

from __future__ import annotations

import socket

from ..core.errors import ConfigError
from .config import ServerConfig


def bind(config: ServerConfig) -> socket.socket:
    """The listening socket, before anything is loaded: a port in use is found at once. Raises ConfigError."""
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        return socket.create_server((config.host, config.port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            f"cannot listen on {config.host} port {config.port}: {reason}; choose another --port"
        ) from error
