"""Writes the checkpoints beside this file, with the real TensorFlow and Sonnet, and what they hold as `.npz`.

The tests never run it: they read what it wrote, and need no TensorFlow. To write everything anew, in an environment of
its own with `tensorflow-cpu==2.21.0` and `dm-sonnet==2.0.2`, run `python write_checkpoints.py`.
"""

import lzma
import pathlib

import numpy as np
import sonnet as snt
import tensorflow as tf

HERE = pathlib.Path(__file__).parent
X = np.linspace(-1.0, 1.0, 10, dtype=np.float32).reshape(2, 5)
IMAGES = np.sin(np.arange(2 * 4 * 4 * 3, dtype=np.float32)).reshape(2, 4, 4, 3)


class Recognizer(snt.Module):
    """Convolution, normalization, and a recurrent core over the rows."""

    def __init__(self, name=None):
        super().__init__(name=name)
        self._conv = snt.Conv2D(4, 3, name="conv")
        self._norm = snt.BatchNorm(create_scale=True, create_offset=True, decay_rate=0.9)
        self._start = snt.TrainableState(snt.LSTMState(tf.fill([3], 0.1), tf.fill([3], -0.2)))
        self._heads = {"core": snt.LSTM(3), "out": (snt.Linear(2), snt.Linear(2))}

    def __call__(self, images, is_training):
        maps = tf.nn.relu(self._norm(self._conv(images), is_training=is_training))
        rows = tf.transpose(tf.reduce_mean(maps, 2), [1, 0, 2])
        core = self._heads["core"]
        features, _ = snt.dynamic_unroll(core, rows, self._start(images.shape[0]))
        first, second = self._heads["out"]
        return first(features[-1]) - second(features[-1])


def trained(model, optimizer, steps):
    for _ in range(steps):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(model(X) - 1.0))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


def write_mlp():
    """An MLP with each optimizer; the outputs now, and after one more step."""
    optimizers = {
        "adam": snt.optimizers.Adam(0.01),
        "momentum": snt.optimizers.Momentum(0.01, 0.9),
        "rms_prop": snt.optimizers.RMSProp(0.01, momentum=0.9, centered=True),
    }
    for name, optimizer in optimizers.items():
        tf.random.set_seed(1)
        model = snt.nets.MLP([4, 3])
        tf.function(lambda model=model, optimizer=optimizer: trained(model, optimizer, 2))()
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer)
        checkpoint.save(str(HERE / f"mlp_{name}"))
        now = model(X).numpy()
        saved = {v.name.removesuffix(":0"): v.numpy() for v in (*model.variables, *optimizer.variables)}
        trained(model, optimizer, 1)
        np.savez_compressed(HERE / f"mlp_{name}.npz", x=X, now=now, then=model(X).numpy(), **saved)


def write_recognizer():
    """A module of one's own, whose attributes are private, in dicts, tuples and named tuples."""
    tf.random.set_seed(2)
    model = Recognizer()
    for _ in range(3):
        model(IMAGES, is_training=True)
    for index, variable in enumerate(model.trainable_variables):
        noise = np.sin(np.arange(index, index + variable.shape.num_elements(), dtype=np.float32))
        variable.assign_add(0.1 * noise.reshape(variable.shape))
    tf.train.Checkpoint(model).write(str(HERE / "recognizer"))
    np.savez_compressed(
        HERE / "recognizer.npz",
        images=IMAGES,
        testing=model(IMAGES, is_training=False).numpy(),
        training=model(IMAGES, is_training=True).numpy(),
    )


def write_kinds():
    """All dtypes, a scalar, an empty tensor, strings, a module in two places."""
    values = {
        "half": np.array([1.5, -2.0, 65504.0], np.float16),
        "double": np.array([[np.pi]]),
        "bytes": np.arange(256, dtype=np.uint8),
        "short": np.array([-(2**15)], np.int16),
        "word": np.array([2**16 - 1], np.uint16),
        "int": np.array([-(2**31), 2**31 - 1], np.int32),
        "long": np.array([2**40, -(2**63)], np.int64),
        "unsigned": np.array([2**64 - 1], np.uint64),
        "flags": np.array([[True, False], [False, True]]),
        "complex": np.array([1 + 2j, -3j], np.complex64),
        "scalar": np.float32(2.5),
        "empty": np.zeros([2, 0, 3], np.float32),
        "nonfinite": np.array([np.nan, np.inf, -np.inf, -0.0], np.float32),
        "text": np.array([b"", "größe".encode(), b"\0" * 3, b"x" * 200], object),
        "word/with.dots": np.array(b"alone", object),
    }
    root = tf.train.Checkpoint(**{name: tf.Variable(value) for name, value in values.items()})
    root.brain = tf.Variable(tf.constant([1.0, 3.140625, -0.0], tf.bfloat16))
    layer = snt.Linear(2)
    layer(X)
    root.layers, root.again = [layer, snt.Linear(1)], {"same": layer}
    root.layers[1](X)
    root.write(str(HERE / "kinds"))
    np.savez_compressed(
        HERE / "kinds.npz",
        brain_as_float=root.brain.numpy().astype(np.float32),
        text_lengths=[len(text) for text in values.pop("text")],
        w=layer.w.numpy(),
        **{name: value for name, value in values.items() if value.dtype != object},
    )


def write_shards():
    """One checkpoint in several files; one in which a tensor is cut into slices."""
    variables = {f"v{i}": tf.Variable(np.arange(i + 20, dtype=np.float32)) for i in range(6)}

    def write(name, size):
        policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=size)
        options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
        tf.train.Checkpoint(**variables).write(str(HERE / name), options=options)

    write("shards", 500)
    variables["v6"] = tf.Variable(tf.reshape(tf.range(400.0), [20, 20]))
    write("slices", 1024)


def write_long_index():
    """An index of several blocks, packed, since it is long."""
    variables = {f"{i:03d}{'long' * 512}": tf.Variable(float(i)) for i in range(140)}
    prefix = HERE / "long_index"
    tf.train.Checkpoint(**variables).write(str(prefix))
    for path in HERE.glob("long_index.*"):
        if path.suffix != ".xz":
            path.with_name(f"{path.name}.xz").write_bytes(lzma.compress(path.read_bytes()))
            path.unlink()


if __name__ == "__main__":
    write_mlp()
    write_recognizer()
    write_kinds()
    write_shards()
    write_long_index()
    (HERE / "checkpoint").unlink()
