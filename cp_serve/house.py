"""What the routes work with, made once for the process."""

import asyncio
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cp_serve.idempotency import Answers
from cp_serve.pictures import Pictures
from cp_serve.replicas import Replicas
from cp_serve.signing import Signer, load_key
from cp_serve.traffic import Traffic
from services.auth import Door, People
from services.intake import Intake
from services.lineage import Registry
from services.objects import ObjectStore
from services.quotas import Buckets, Quota
from services.settings import Settings

_UPLOADS = 2
"""Uploads that are read at once; each may fill the memory with `max_upload_bytes`."""


@dataclass(frozen=True, eq=False)
class House:
    """The outside systems of the ingress, and what is built on them: `request.app.state.house`.

    Attributes:
        denoiser: Serve's handle; routes speak to `replicas`.
    """

    settings: Settings
    registry: Registry
    denoiser: Any
    store: ObjectStore

    @cached_property
    def traffic(self) -> Traffic:
        """What this process counts."""
        return Traffic()

    @cached_property
    def replicas(self) -> Replicas:
        """The denoiser's replicas."""
        return Replicas(self.denoiser, self.traffic, deadline_seconds=self.settings.deadline_seconds)

    @cached_property
    def intake(self) -> Intake:
        """Concept images on their way."""
        return Intake(self.store, self.settings)

    @cached_property
    def signer(self) -> Signer:
        """Signs with the installation's key. Asks the store the first time."""
        return Signer(load_key(self.store))

    @cached_property
    def pictures(self) -> Pictures:
        """Pictures behind links."""
        settings = self.settings
        return Pictures(self.store, self.signer, url=settings.public, seconds=settings.picture_seconds)

    @cached_property
    def answers(self) -> Answers:
        """Answers by Idempotency-Key."""
        settings = self.settings
        patience = settings.deadline_seconds + settings.body_seconds
        return Answers(self.store, self.signer, seconds=settings.answer_seconds, patience=patience)

    @cached_property
    def people(self) -> People:
        """Everybody who has a token."""
        return People(self.store)

    @cached_property
    def door(self) -> Door:
        """Who knows people by their tokens."""
        return Door(self.people, watch_token=self.settings.watch_token)

    @cached_property
    def pictures_quota(self) -> Buckets:
        """Everybody's share of the drawing."""
        return Buckets(Quota("pictures", self.settings.quota_pictures, 3600.0))

    @cached_property
    def concepts_quota(self) -> Buckets:
        """Everybody's share of the learning."""
        return Buckets(Quota("concepts", self.settings.quota_concepts, 86400.0))

    @cached_property
    def uploads(self) -> asyncio.Semaphore:
        """Room for uploads."""
        return asyncio.Semaphore(_UPLOADS)
