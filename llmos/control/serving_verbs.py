"""The control module's verbs about services and models: see :mod:`llmos.control.control`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llmos.control import admission, encoders
from llmos.control.describe import service_view
from llmos.control.loop import Loop
from llmos.control.registry import Registry
from llmos.control.rollouts import table
from llmos.control.store import Store
from llmos.errors import ConflictError
from llmos.heartbeat import Route
from llmos.layout import Layout

View = dict[str, Any]


class ServingVerbs:
    """What can be asked about services and models. Safe to call from any thread."""

    def __init__(
        self, store: Store, registry: Registry, loop: Loop, layout: Layout, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._registry = registry
        self._loop = loop
        self._layout = layout
        self._clock = clock

    # Services

    def list_services(self) -> list[View]:
        return [service_view(served, self._loop.sight) for served in self._store.services.served()]

    def get_service(self, name: str) -> View:
        return self._service(self._store.services.find(name)["name"])

    def put_service(self, name: str, spec: Mapping[str, Any]) -> View:
        """Create the service ``name``, or change it."""
        service = admission.service(name, spec)
        for model in (service.model, service.canary.model if service.canary else service.model):
            encoders.check(service, Path(self._registry.get(model)["path"]))
        self._store.services.put(service, self._clock())
        return self._service(name, nudge=True)

    def weigh_service(self, name: str, weight: float) -> View:
        """Give the canary of a service another share of the requests: 0 ends it, 1 makes it the service's model."""
        canary = self._store.services.find(name)["spec"].get("canary")
        if not canary:
            what = f"service {name} has no canary: expected `canary: {{model: …, weight: …}}` in its spec"
            raise ConflictError(what, hint=f"`llmos serve MODEL --name {name} --canary 0.1` makes one")
        fields = {"model": canary["model"]} if weight == 1 else {}
        left = None if weight in (0, 1) else {**canary, "weight": weight}
        self._store.services.change(name, self._clock(), **fields, canary=left)
        return self._service(name, nudge=True)

    def rollback_service(self, name: str) -> View:
        """End the canary of a service, or make its revision before current again."""
        self._store.services.rollback(name, self._clock())
        return self._service(name, nudge=True)

    def delete_service(self, name: str) -> None:
        self._store.services.remove(name, self._clock())
        self._loop.nudge()

    def service_events(self, name: str) -> list[View]:
        """What was decided about a service and what happened to it, oldest first: ``{at, subject, what, why}``."""
        self._store.services.find(name)
        return self._store.events.of("service", name)

    def routes(self) -> dict[str, Route]:
        """What the front door is told of the services: :func:`llmos.control.rollouts.table`."""
        return table(self._store.services.served(), self._loop.sight.services, self._layout)

    def _service(self, name: str, nudge: bool = False) -> View:
        if nudge:
            self._loop.nudge()
        served = next(served for served in self._store.services.served() if served.row["name"] == name)
        return service_view(served, self._loop.sight)

    # Models

    def list_models(self) -> list[View]:
        return self._registry.all()

    def get_model(self, ref: str) -> View:
        return self._registry.get(ref)

    def import_model(self, name: str, path: str) -> View:
        return self._registry.import_model(name, path)

    def export_model(self, ref: str, path: str) -> View:
        return self._registry.export(ref, path)

    def remove_model(self, ref: str) -> None:
        self._registry.remove(ref)

    def get_alias(self, name: str, alias: str) -> View:
        """The version that ``name@alias`` means, and all that it ever meant."""
        return self._registry.alias(name, alias)

    def set_alias(self, name: str, alias: str, target: str) -> View:
        """Have ``name@alias`` mean the version that ``target`` means; services that follow it are updated."""
        found = self._registry.set_alias(name, alias, target)
        self._loop.nudge()
        return found

    def rollback_alias(self, name: str, alias: str) -> View:
        """Have ``name@alias`` mean what it did before; services that follow it are updated."""
        found = self._registry.rollback_alias(name, alias)
        self._loop.nudge()
        return found

    def remove_alias(self, name: str, alias: str) -> None:
        self._registry.remove_alias(name, alias)
