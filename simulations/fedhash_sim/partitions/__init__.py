"""Dealing training patients to sites, by the partitioners of flwr-datasets.

>>> partition_patients(studies, Partition(scheme="dirichlet", sites=10, alpha=.1), seed=0)
{'site-00': (Study(...), ...), ...}
"""

from fedhash_sim.partitions.natural import POOLED_SITE
from fedhash_sim.partitions.patients import PartitionError, partition_patients

__all__ = ["POOLED_SITE", "PartitionError", "partition_patients"]
