"""What a training would cost, before anything is booked."""
