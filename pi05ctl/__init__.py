"""pi05ctl: submits, watches and reports runs of Pi0.5, on this machine or (later) on Kubernetes."""
