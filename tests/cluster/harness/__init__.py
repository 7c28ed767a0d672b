"""A real Kubernetes on this machine for the tests: built once, started in seconds, gone without a trace.

    python -m tests.cluster.harness up        # a cluster that stays until `down`
    eval "$(python -m tests.cluster.harness env)"
    kubectl get nodes

Real are etcd, the API server with admission and RBAC, controllers, scheduler, kubelet, containerd, image pulls from a
registry, cluster DNS and logs. Not real are the GPUs (a number on the node) and the bucket (an emulator of GCS).
"""
