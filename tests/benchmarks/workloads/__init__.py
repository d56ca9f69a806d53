"""The workloads of the benchmark, by name."""

from tests.benchmarks.workloads.batchnorm_convnet import BATCHNORM_CONVNET
from tests.benchmarks.workloads.convnet import CONVNET
from tests.benchmarks.workloads.fields import by_field
from tests.benchmarks.workloads.lstm import LSTM
from tests.benchmarks.workloads.mlp import mlp, narrow
from tests.benchmarks.workloads.transformer import TRANSFORMER
from tests.benchmarks.workloads.workload import Workload

_ALL = (
    narrow("mlp_3x16", 3),
    narrow("mlp_50x16", 50),
    by_field("variables_400", 400),
    by_field("variables_2000", 2000, is_huge=True),
    mlp("classifier", [784, 625, 625, 10], 100),
    CONVNET,
    BATCHNORM_CONVNET,
    LSTM,
    TRANSFORMER,
)
WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _ALL}
