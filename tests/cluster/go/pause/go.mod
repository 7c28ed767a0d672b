module pi05.dev/tests/cluster/pause

go 1.24.0
