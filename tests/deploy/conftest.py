"""The API server of the driver's tests: the fake, or for `envtest` a real one where KUBEBUILDER_ASSETS names it."""

from tests.kata_gpu.dra.conftest import api, closed_api, real_api

__all__ = ["api", "closed_api", "real_api"]
