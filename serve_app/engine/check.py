"""Whether a model can draw what a job asks for; checked before the job is queued.

Data flow: job, model, what fits -> nothing, or an error that names the field. Must not touch the
device.
"""

from serve_app.engine.job import GenerationJob, ModelInfo
from serve_app.errors import InvalidValue

SEED_LIMIT = 2**64  # torch.Generator takes 64 bits


def check_job(job: GenerationJob, info: ModelInfo, samples_max: int) -> None:
    """Raise `InvalidValue`, at the field that is wrong; `samples_max` of it fit into memory."""
    multiple = info.size_multiple_px
    if job.width % multiple or job.height % multiple or min(job.width, job.height) < multiple:
        raise InvalidValue(f"Width and height must be multiples of {multiple}.").at("size")
    if samples_max == 0:
        raise InvalidValue("The memory of this model's machine cannot hold that size.").at("size")
    if job.steps < 1:
        raise InvalidValue("At least one step is needed.").at("num_inference_steps")
    if not job.seeds:
        raise InvalidValue("At least one image is needed.").at("n")
    if not all(0 <= seed < SEED_LIMIT for seed in job.seeds):
        raise InvalidValue("Seeds are whole numbers from 0 to 2^64 - 1.").at("seed")
