"""Prompts that wait for the text encoders, and their pass between two steps.

Data flow: handles asked for in advance (`ask`), and those that jobs came without -> one pass
(`text.py`) -> handles filled in. The board's lock guards the queue; `encode` runs on the device
thread. Must not log prompts.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence

from serve_app.engine.board import Board
from serve_app.engine.parts import PASS_PROMPTS_MAX, Encoder, PromptEmbedding, Vectors
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import AppError, GenerationFailed

logger = logging.getLogger(__name__)


class PromptQueue:
    """The first stage of a turn."""

    def __init__(self, board: Board, encoder: Encoder, watchdog: Watchdog) -> None:
        self._board = board
        self._encoder = encoder
        self._watchdog = watchdog
        self._waiting: deque[PromptEmbedding] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """Queue prompts for the next pass; known ones are ready at once. Any thread.

        Raises:
            Draining: the engine is closing.
            Unavailable: the device thread died.
        """
        handles = [PromptEmbedding(prompt, self._encoder.cached(prompt)) for prompt in prompts]
        with self._board.changed:
            self._board.refuse_when_closed()
            self._waiting.extend(handle for handle in handles if handle.pending)
            self._board.changed.notify_all()
        return handles

    def fail(self, error: AppError) -> None:
        """Forget every prompt. Holds the board's lock."""
        while self._waiting:
            self._waiting.popleft().failure = error

    def encode(self) -> None:
        """Fill in the embeddings that were asked for and those that jobs came without."""
        with self._board.changed:
            count = min(len(self._waiting), PASS_PROMPTS_MAX)
            asked = [self._waiting.popleft() for _ in range(count)]
            runs = list(self._board.runs.values())
        pending = [*asked, *(run.embedding for run in runs)]
        pending = [handle for handle in dict.fromkeys(pending) if handle.pending]
        pending = pending[:PASS_PROMPTS_MAX]
        if not pending:
            return
        began = time.monotonic()
        encoded = self._pass([handle.prompt for handle in pending])
        passed = (began, time.monotonic(), len(pending))
        for handle in pending:
            handle.passed = passed
            answer = encoded[handle.prompt]
            if isinstance(answer, AppError):
                handle.failure = answer
            else:
                handle.vectors = answer
        for run in runs:
            if run.embedding.failure:
                self._board.end(run, run.embedding.failure)

    def _pass(self, prompts: list[str]) -> dict[str, Vectors | AppError]:
        """Encode in one pass; if that fails, one by one, so that only the culprit suffers."""
        self._watchdog.begin(("encode", len(prompts)))
        learn = False
        try:
            encoded = dict(zip(prompts, self._encoder.encode(prompts), strict=True))
            learn = True
            return dict(encoded)
        except Exception:
            logger.exception("encoding %d prompts failed", len(prompts))
        finally:
            self._watchdog.end(learn=learn)
        if len(prompts) == 1:
            return {prompts[0]: GenerationFailed("The model failed to read the prompt.")}
        return {name: answer for one in prompts for name, answer in self._pass([one]).items()}
