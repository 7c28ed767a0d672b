"""pi05: the program that runs inside a pod or a local process: demonstrations, training, evaluation of Pi0.5."""
