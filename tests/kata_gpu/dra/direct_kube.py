"""`Kube` straight over the fake store: what 5,000 nodes can share without 5,000 sockets. Counts as the server does."""

from collections.abc import Callable, Iterator
from typing import Any, cast

from kata_gpu.core.api_errors import Conflict, NotFound, Refused
from kata_gpu.errors import KataGpuError
from kata_gpu.ports import JsonObject
from tests.kata_gpu.dra.fake_api import route
from tests.kata_gpu.dra.fake_store import ApiError, Store


class DirectKube:
    """No HTTP; the store's rules apply."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def get(self, path: str, *, timeout_s: float) -> JsonObject:
        kind, namespace, name, _ = route(path)
        return cast("JsonObject", self._call(self.store.get, kind, namespace, name))

    def list(self, path: str, *, field_selector: str = "", timeout_s: float) -> tuple[list[JsonObject], str]:
        kind, namespace, _, _ = route(path)
        items, version = self.store.list(kind, namespace, field_selector)
        return items, str(version)

    def create(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        kind, namespace, _, _ = route(path)
        return cast("JsonObject", self._call(self.store.create, kind, namespace, body))

    def replace(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        kind, namespace, name, sub = route(path)
        return cast("JsonObject", self._call(self.store.replace, kind, namespace, name, body, status=sub == "status"))

    def merge(self, path: str, body: JsonObject, *, timeout_s: float) -> JsonObject:
        kind, namespace, name, sub = route(path)
        return cast("JsonObject", self._call(self.store.merge, kind, namespace, name, body, status=sub == "status"))

    def apply(self, path: str, body: JsonObject, *, manager: str, timeout_s: float) -> JsonObject:
        kind, namespace, name, sub = route(path)
        return cast(
            "JsonObject",
            self._call(self.store.apply, kind, namespace, name, body, manager, force=True, status=sub == "status"),
        )

    def delete(self, path: str, *, uid: str = "", timeout_s: float) -> None:
        kind, namespace, name, _ = route(path)
        self._call(self.store.delete, kind, namespace, name, {"preconditions": {"uid": uid}} if uid else None)

    def watch(
        self, path: str, *, resource_version: str, field_selector: str = "", timeout_s: float
    ) -> Iterator[JsonObject]:
        kind, _, _, _ = route(path)
        for _, event, obj in self.store.since(kind, int(resource_version), field_selector):
            yield {"type": event, "object": obj}

    @staticmethod
    def _call(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except ApiError as exc:
            kind: type[KataGpuError] = {404: NotFound, 409: Conflict}.get(exc.code, Refused)
            raise kind(f"api-{exc.code}", str(exc)) from exc
