"""Deliveries on their way out: which addresses may be called, how a delivery is signed, and the loop
that sends them."""
