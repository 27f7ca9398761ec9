"""The ways down: each is a state and a step, and `driver` makes the steps of all of them."""
