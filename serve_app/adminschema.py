"""Wire models of the admin routes: what an operator's tools get. Pydantic only.

Data flow: `ingress.admin` fills these -> JSON; `ingress.openapi` and the docs are made from them.
"""

from pydantic import BaseModel, Field


class ReplicaStatus(BaseModel):
    """Replicas of one model by Serve's word, at most a second old."""

    running: int = Field(description="Replicas that take jobs.")
    starting: int = Field(description="Replicas on their way up: placed, loading, recovering.")
    stopping: int = Field(description="Replicas on their way down, finishing their jobs.")
    target: int | None = Field(
        description="How many Serve wants now; null while the model is not deployed."
    )


class ModelStatus(BaseModel):
    """One model: who could work, and what work there is in the whole fleet."""

    id: str
    replicas: ReplicaStatus
    num_gpus: float = Field(description="GPUs pinned to each replica.")
    open_holds: int = Field(description="Jobs queued or running, in every gateway.")
    held_images: int = Field(description="Images that those jobs asked for.")
    held_units: int = Field(description="Compute units that those jobs hold.")


class StatusResponse(BaseModel):
    """Reply of `GET /admin/v1/status`."""

    models: list[ModelStatus] = Field(description="Every served model, in the config's order.")
