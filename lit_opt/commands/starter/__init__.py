"""What `lit-opt new` writes: the files of a starter project, made from the workloads' own source."""
