"""Graphs of different sizes: which nodes can be reached from the first one?

A message-passing network says it of each node. The gradient of each graph is computed apart and weighted by its number of
nodes: in one process, by a scenario; and by worker processes, which send their gradients over a socket.
"""

import multiprocessing
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import modulekit as mk
import scenarios
from scenarios.aggregation import GradientClient, GradientServer, Intake

SIZES = {"features": 12, "adjacency": (12, 12), "reachable": 12}
Graphs = Mapping[str, Any]


class MessagePassing(mk.Module):
    """Rounds of messages between neighbors, all with the same weights; then a logit for each node."""

    def __init__(self, size: int = 16, rounds: int = 8, name: str | None = None) -> None:
        super().__init__(name=name)
        self.rounds = rounds
        self.embed, self.message, self.change = mk.Linear(size), mk.Linear(size), mk.Linear(size)
        self.readout = mk.Linear(1)

    def __call__(self, graph: Graphs) -> jax.Array:
        h = jnp.tanh(self.embed(graph["features"]))
        for _ in range(self.rounds):
            messages = graph["adjacency"] @ self.message(h)  # what is not there has no edges, and sends none
            h = h + jnp.tanh(self.change(jnp.concatenate([h, messages], axis=-1)))
        return self.readout(h)[:, 0]


def loss(model: Any, graph: Graphs) -> jax.Array:
    """Returns the mean cross-entropy over the nodes of a graph."""
    own = graph["mask"]["features"]
    return (own * mk.losses.sigmoid_cross_entropy(model(graph), graph["reachable"])).sum() / own.sum()


def measures(model: Any, graph: Graphs) -> dict[str, jax.Array]:
    """Returns the share of nodes that the model is right about, and whether it is right about the graph being connected."""
    own, found, true = graph["mask"]["features"], model(graph) > 0, graph["reachable"] > 0
    connected = (found | ~own).all() == (true | ~own).all()
    return {"nodes": (own & (found == true)).sum() / own.sum(), "connected": connected.astype(jnp.float32)}


def random_graphs(count: int, seed: int) -> dict[str, Any]:
    """Returns padded graphs of 4 to 12 nodes, with what can be reached from the first one."""
    rng, graphs = np.random.default_rng(seed), []
    for _ in range(count):
        nodes = int(rng.integers(4, SIZES["features"] + 1))
        upper = np.triu(rng.random([nodes, nodes]) < 2.0 / nodes, 1)
        adjacency = (upper | upper.T).astype(np.float32)
        reachable = np.linalg.matrix_power(adjacency + np.eye(nodes), nodes)[0] > 0
        features = np.eye(nodes, 1, dtype=np.float32)  # a mark at the first node
        graphs.append({
            "features": features, "adjacency": adjacency, "reachable": reachable.astype(np.float32),
            "count": np.float32(nodes),
        })  # fmt: skip
    return mk.data.padded(graphs, SIZES)


def made(seed: int, data: Graphs) -> MessagePassing:
    """Returns the model with its first weights."""
    mk.seed(seed)
    model = MessagePassing()
    mk.build(model, jax.tree.map(lambda array: array[0], data))
    return model


def work(
    address: tuple[str, int], secret: bytes, index: int, workers: int, steps: int, batch_size: int, seed: int
) -> None:
    """Runs in a process of its own: contributes the gradient of its share of each batch."""
    data = random_graphs(1000, seed)
    examples, model, version = mk.data.Arrays(data), made(seed, data), -1
    paths = [path for path, variable in model.paths().items() if variable.trainable]

    @mk.jit
    def gradient(batch: Graphs) -> list[jax.Array]:
        weights = batch["count"] / batch["count"].sum()
        return mk.grad(lambda: weights @ mk.vmap(lambda graph: loss(model, graph))(batch), model)()

    with GradientClient(address, secret) as client:
        while version < steps - 1:
            version, arrays = client.fetch(after=version)
            model.assign(arrays)
            batch = examples.take(mk.data.batch_indices(1000, batch_size, seed, version, 1)[0][index::workers])
            gradients = dict(zip(paths, gradient(batch), strict=True))
            receipt = client.submit(gradients, float(batch["count"].sum()), f"worker {index}", version)
            if not receipt:
                raise SystemExit(f"worker {index} was refused: {receipt.reason}")


def train_with_workers(model: MessagePassing, optimizer: mk.Optimizer, workers: int, steps: int, *others: int) -> None:
    """Trains by processes that compute gradients, while this one adds them up and applies them."""
    intake, secret = Intake(model), secrets.token_bytes(32)
    spawn = multiprocessing.get_context("spawn")
    with GradientServer(intake, secret) as server:
        arguments = [(server.address, secret, index, workers, steps, *others) for index in range(workers)]
        processes = [spawn.Process(target=work, args=each, daemon=True) for each in arguments]
        for process in processes:
            process.start()
        for _ in range(steps):
            while not intake.wait(workers, timeout=1.0):
                if any(process.exitcode not in (None, 0) for process in processes):
                    raise SystemExit("a worker has failed")
            intake.apply(optimizer)
        for process in processes:
            process.join()


def main(steps: int = 200, workers: int = 2, batch_size: int = 40, rate: float = 3e-3, seed: int = 0) -> float:
    """Trains both ways, and prints what differs between their weights.

    Args:
      steps: updates of each.
      workers: processes that compute gradients; 0 trains in this process alone.
      batch_size: graphs per update.
      rate: Adam's learning rate.
      seed: of the graphs, the first weights and the order of the graphs.
    """
    data, test = random_graphs(1000, seed), random_graphs(500, seed + 1)
    models = {"one process": made(seed, data)}
    rows = {"always yes": (0.0, evaluated(lambda graph: jnp.ones(SIZES["features"]), test))}

    def by_scenario() -> None:
        train = scenarios.AggregatedGradients(steps, batch_size=batch_size, weight="count", seed=seed)
        train(models["one process"], mk.optimizers.Adam(rate), loss, data=data)

    rows["one process"] = timed(by_scenario), evaluated(models["one process"], test)
    if workers:
        name = f"{workers} workers"
        models[name] = made(seed, data)
        train = lambda: train_with_workers(models[name], mk.optimizers.Adam(rate), workers, steps, batch_size, seed)  # noqa: E731
        rows[name] = timed(train), evaluated(models[name], test)
    print_table(rows, steps)
    first, *others = [model.paths().values() for model in models.values()]
    gaps = [abs(v.numpy() - o.numpy()).max() for other in others for v, o in zip(first, other, strict=True)]
    largest = float(max(gaps, default=0.0))
    print(f"largest difference between their weights: {largest:.6f}")
    return largest


def timed(run: Callable[[], None]) -> float:
    """Runs, and returns the seconds that it took."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def evaluated(model: Any, graphs: Graphs) -> dict[str, float]:
    """Returns the means over all graphs."""
    of_one = lambda graph: {"loss": loss(model, graph), **measures(model, graph)}  # noqa: E731
    found = mk.jit(lambda graphs: mk.vmap(of_one)(graphs))(graphs)
    return {name: float(values.mean()) for name, values in found.items()}


def print_table(rows: Mapping[str, tuple[float, Mapping[str, float]]], steps: int) -> None:
    """Prints both ways side by side."""
    table = Table(
        title=f"which nodes can be reached from the first one, after {steps} steps; 500 graphs of 4 to 12 nodes"
    )
    for heading in ("trained by", "seconds", "test loss", "nodes right", "graphs connected or not, right"):
        table.add_column(heading, justify="left" if heading == "trained by" else "right")
    for name, (seconds, found) in rows.items():
        cells = [f"{found['loss']:.4f}", f"{found['nodes']:.3f}", f"{found['connected']:.3f}"]
        table.add_row(name, f"{seconds:.1f}" if seconds else "-", *cells)
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
