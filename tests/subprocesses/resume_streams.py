"""Goes on with the runs of `feeding_test` on streams, which were cut in another process."""

import sys
from pathlib import Path

import feeding_test
import numpy as np

folder = Path(sys.argv[1])
for name, make in feeding_test.STREAMS.items():
    result, state = feeding_test.start(make(), save_dir=folder / name)
    np.savez(folder / f"{name}.npz", losses=result.column("loss")[1], **state)
