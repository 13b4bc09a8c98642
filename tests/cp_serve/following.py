"""A replica that follows one lineage of the real registry by hand, behind a network and a store that can fail."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import uuid4

from cp_serve.bank import Bank
from cp_serve.follower import Follower
from cp_serve.metrics import Metrics
from services.base_model import BaseModel
from services.canary import Targets
from services.lineage import Registry
from services.manifest import ADAPTER_FILE, BaseRef
from services.objects import DirectoryStore, open_store
from services.settings import Settings
from tests.cp_serve.drawings import PATIENCE
from tests.cp_serve.versions import adapter_of, publish
from tests.proxy import Proxy


class OneLineage(Registry):
    """The real registry, without the lineages of other tests."""

    only = ""

    def targets(self) -> dict[str, Targets]:
        return {name: target for name, target in super().targets().items() if name == self.only}


class SometimesSilent(DirectoryStore):
    """A directory that answers nobody while it does not `answer`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.answers = threading.Event()
        self.answers.set()

    def get(self, key: str) -> bytes:
        assert self.answers.wait(PATIENCE)
        return super().get(key)

    def create(self, key: str, data: bytes) -> bool:
        assert self.answers.wait(PATIENCE)
        return super().create(key, data)

    def list(self, prefix: str = "") -> Iterator[str]:
        assert self.answers.wait(PATIENCE)
        return super().list(prefix)


@dataclass(frozen=True)
class Replica:
    """A bank that is followed by hand."""

    bank: Bank
    follower: Follower
    metrics: Metrics

    @staticmethod
    def of(registry: Registry, base: BaseModel) -> "Replica":
        metrics = Metrics()
        bank = Bank(registry, base, metrics=metrics)
        return Replica(bank, Follower(registry, bank, seconds=0.05, metrics=metrics), metrics)

    def look(self) -> None:
        """Look, and again for as long as something is on its way."""
        self.follower.look()
        while self.follower.under_way:
            self.follower.look()

    @property
    def refusals(self) -> float:
        """What alerts fire on."""
        samples = (sample for family in self.metrics.collect() for sample in family.samples)
        return next(sample.value for sample in samples if sample.name == "palimpsest_refused_adapters_total")


@dataclass(frozen=True)
class Rooms:
    """A registry, and a replica that has it behind a network and before a store that can fail."""

    registry: Registry
    far: OneLineage
    network: Proxy
    store: SometimesSilent
    base: BaseModel
    lineage: str
    replica: Replica

    def publish(self, seed: int, *, live: bool = True, ref: BaseRef | None = None, passed: bool = True) -> int:
        adapter = adapter_of(self.base, {"fox": 1}, seed=seed)
        return publish(self.registry, self.lineage, self.base, adapter, live=live, ref=ref, passed=passed).number

    def damage(self, number: int) -> Callable[[], None]:
        """Change a version's weights in the store; returns what takes that back."""
        run_id = self.registry.version(self.lineage, number).run_id
        (key,) = [key for key in self.store.list("mlflow/") if run_id in key and key.endswith(ADAPTER_FILE)]
        whole = self.store.get(key)
        self.store.put(key, whole[:-40] + b"x" * 40)
        return lambda: self.store.put(key, whole)

    def new_replica(self) -> "Rooms":
        """The same with a replica that has just begun, and has looked."""
        rooms = replace(self, replica=Replica.of(self.far, self.base))
        rooms.look()
        assert rooms.follower._settled(), "it would be ready"
        return rooms

    def look(self) -> None:
        self.replica.look()

    @property
    def bank(self) -> Bank:
        return self.replica.bank

    @property
    def follower(self) -> Follower:
        return self.replica.follower

    @property
    def served(self) -> int | None:
        return self.bank.pointers().get(self.lineage)

    @property
    def refusal(self) -> str:
        return self.follower.refused[self.lineage].why


@contextmanager
def rooms_of(settings: Settings, base: BaseModel) -> Iterator[Rooms]:
    """A replica of a lineage of its own."""
    store = SometimesSilent(Path(open_store(settings).root))
    with Proxy(settings.mlflow) as network:
        far = OneLineage(settings.model_copy(update={"mlflow_uri": network.endpoint}), store)
        far.only = f"l{uuid4().hex[:12]}"
        near = Registry(settings, open_store(settings))
        rooms = Rooms(near, far, network, store, base, far.only, Replica.of(far, base))
        try:
            yield rooms
        finally:
            store.answers.set()
            rooms.follower.stop()
