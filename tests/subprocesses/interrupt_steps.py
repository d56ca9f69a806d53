"""Interrupts compiled steps at random moments, many times; prints how often, if the variables were whole every time."""

import random
import signal

import jax.numpy as jnp

import modulekit as mk


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(rounds: int = 60) -> None:
    variables = [mk.Variable(jnp.zeros([300, 300]), name=f"v{index}") for index in range(12)]

    @mk.jit
    def step() -> None:
        for variable in variables:
            variable.assign_add(1.0)

    step()
    signal.signal(signal.SIGALRM, interrupt)
    random.seed(0)
    reached = set()
    for _ in range(rounds):
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.02))
            while True:
                step()
        except KeyboardInterrupt:
            counts = {float(variable.value[0, 0]) for variable in variables} | {
                float(variable.value.min()) for variable in variables
            }
            if len(counts) != 1:
                raise SystemExit(f"half a step was kept: {sorted(counts)}") from None
            reached |= counts
    print(f"{rounds} interrupts, {len(reached)} different steps")


if __name__ == "__main__":
    main()
