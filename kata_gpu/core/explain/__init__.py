"""Explain: log lines of Kata, QEMU, kernel, containerd and kubelet to cause and fix. The table is `causes.toml`."""

from kata_gpu.core.explain.classify import Cause, Match, causes, explain, explain_line

__all__ = ["Cause", "Match", "causes", "explain", "explain_line"]
