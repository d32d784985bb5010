"""From published archives and image folders to sharded ArrayRecord that TFDS reads, without TensorFlow.

`folders`, `ilsvrc` and `cifar` list what a source holds, as `sources` describes it; `shards` decides which example goes
where and writes one shard, `pool` all of them with several processes; `metadata` adds TFDS's files and a manifest;
`run` puts these in order and makes the whole visible; `check` verifies what lies there.

The order of the examples is TFDS's: sorted by the MD5 hash of split and key, with TFDS's own keys. So the examples of
`train[:10%]` are the same ones, whoever has prepared the data set. Which example goes into which shard follows from the
source alone; nothing depends on the number of processes or on how often the work was interrupted.
"""
