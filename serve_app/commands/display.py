"""What a person sees while pictures are drawn: a bar of steps, the place in the queue, previews.

Data flow: events of `client.drawing` -> `Display.show` -> stderr. On a terminal a bar that goes
away at the end; elsewhere only lines worth keeping in a log. Loaded when `generate` runs.
"""

import sys
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from serve_app.client.drawing import Event, Opened, Retrying
from serve_app.client.events import Completed, Partial, Queued
from serve_app.client.events import Progress as StepDone
from serve_app.client.failures import printable
from serve_app.client.previews import Previews
from serve_app.client.terminal import Screen
from serve_app.commands.remote import count, duration


class Display:
    """Use as a context. `screen` is where previews go, if anywhere."""

    def __init__(self, n: int, screen: Screen | None, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr
        self._n = n
        self._previews = Previews(screen, self._out) if screen else None
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._steps: dict[int, float] = {}
        if self._out.isatty():
            self._bar = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[detail]}", markup=False),
                TimeElapsedColumn(),
                console=Console(file=self._out),
                transient=True,  # what stays is the result
            )
            self._task = self._bar.add_task("sending", total=None, detail="")

    def __enter__(self) -> "Display":
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, event: Event) -> None:
        """Show one event of a generation."""
        if isinstance(event, Opened):
            self._say("waiting for a replica")
        elif isinstance(event, Queued):
            self._queued(event)
        elif isinstance(event, StepDone):
            self._steps[event.image_index] = event.step / max(1, event.steps)
            self._say("drawing", self._detail(event))
        elif isinstance(event, Retrying):
            self._steps.clear()
            self._retrying(event)
        elif isinstance(event, Partial | Completed):
            self._picture(event)

    def _queued(self, event: Queued) -> None:
        words = "drawing" if event.ahead == 0 else f"{count(event.ahead, 'picture')} ahead"
        about = "" if event.estimated_s is None else f"about {duration(event.estimated_s)}"
        self._say(words, about)
        if self._bar is None and event.ahead:
            self._line(f"{words}{', ' if about else ''}{about}")

    def _retrying(self, event: Retrying) -> None:
        text = f"{event.failure.message}; trying again in {duration(event.wait_s)}"
        self._say("waiting to try again")
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            self._line(text)

    def _picture(self, event: Partial | Completed) -> None:
        if isinstance(event, Completed):
            self._steps[event.image_index] = 1.0
            self._say("drawing")
        if self._previews is None or self._bar is None:
            return
        self._bar.stop()  # the bar is erased, the cursor stands where it began
        if not self._previews.show(event.image_index, event.b64_json) and self._n == 1:
            self._previews = None  # it will not show the next one either
        self._bar.start()

    def _detail(self, event: StepDone) -> str:
        if self._n == 1:
            return f"step {event.step} of {event.steps}"
        done = sum(share >= 1 for share in self._steps.values())
        return f"{done} of {self._n} pictures"

    def _say(self, description: str, detail: str = "") -> None:
        if self._bar is not None:
            total = self._n if self._steps else None
            self._bar.update(
                self._task,
                description=description,
                detail=detail,
                total=total,
                completed=sum(self._steps.values()),
            )

    def _line(self, text: str) -> None:
        print(printable(text), file=self._out, flush=True)
