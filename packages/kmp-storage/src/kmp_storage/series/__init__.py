"""What all time-series stores share: how a class becomes rows, what a call may ask, stretches of time, their gaps."""
