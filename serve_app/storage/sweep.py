"""The sweep of expired images, again and again, in a gateway.

Data flow: a gateway at its start -> `sweep_forever` -> `ImageStore.sweep`. Any number of gateways
may sweep one store; each begins after a random part of its interval, so that they take turns.
"""

import asyncio
import logging
import random

from serve_app.errors import StoreUnavailable
from serve_app.storage.store import ImageStore

logger = logging.getLogger(__name__)

FIRST_SWEEP_MAX_S = 60.0
"""A restart must not put off the first sweep for long: it may be restarts that never end."""


async def sweep_forever(store: ImageStore, interval_s: float) -> None:
    """Delete expired images until cancelled. A store that is down is tried again next time."""
    wait_s = random.uniform(0, min(interval_s, FIRST_SWEEP_MAX_S))
    while True:
        await asyncio.sleep(wait_s)
        wait_s = interval_s
        try:
            deleted = await store.sweep()
        except StoreUnavailable:
            logger.warning("expired images were not deleted: the store is unavailable")
        else:
            if deleted:
                logger.info("deleted %d expired images", deleted)
