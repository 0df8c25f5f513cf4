"""Kinds of files: the vocabulary that the file port and the facts of a host share."""

from enum import StrEnum


class FileKind(StrEnum):
    """What a path leads to, links followed."""

    FILE = "file"
    DIRECTORY = "directory"
    CHAR_DEVICE = "char-device"
    SOCKET = "socket"
    OTHER = "other"
