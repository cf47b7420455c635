"""Configuration: decoded, validated, filled up, and frozen before anything starts.

An option on the command line beats a ``CACHEFS_…`` variable, which beats ``[mounts.NAME]``, which beats the
``[remotes.NAME]`` it uses, which beats the default.
"""

from cachefs.config.environment import Environment, current
from cachefs.config.file import ConfigFile, read_config_file
from cachefs.config.mount import MountConfig, mount_config
from cachefs.config.options import LogFormat
from cachefs.config.quantities import Space

__all__ = [
    "ConfigFile",
    "Environment",
    "LogFormat",
    "MountConfig",
    "Space",
    "current",
    "mount_config",
    "read_config_file",
]
