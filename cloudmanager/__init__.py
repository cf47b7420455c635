"""The name under which programs import the cloud manager that they were written for: it is that of cachefs."""

from cachefs.cloudmanager import CloudManager

__all__ = ["CloudManager"]
