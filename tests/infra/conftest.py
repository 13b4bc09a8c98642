from tests.infra.store import compose_store

__all__ = ["compose_store"]
