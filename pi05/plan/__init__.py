"""What a training costs before anything is booked: memory, time and wire on GPUs that are described and not there."""
