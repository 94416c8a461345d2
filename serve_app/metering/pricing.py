"""What a job costs in compute units: one pure function.

Data flow: `service` has sizes and steps, already bounded -> units -> `Ledger.hold`. The price of
fewer delivered images is the same function with a smaller `n`. Imports nothing of ours.
"""


def compute_units(n: int, width: int, height: int, steps: int, reference_steps: int) -> int:
    """Price of `n` samples: n x width x height x steps / reference_steps, rounded up.

    At the reference steps this is exactly n x width x height. Python integers cannot overflow, and
    rounding up leaves no size that is free.

    Raises:
        ValueError: If an argument is not a positive integer. A caller that lets one through has a
            bug, and a zero or negative price would be free images or a way to mint units.
    """
    for value in (n, width, height, steps, reference_steps):
        if type(value) is not int or value <= 0:  # `type`, because True is an int to isinstance
            raise ValueError("a price needs positive integers")
    return -(-n * width * height * steps // reference_steps)
