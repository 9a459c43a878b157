"""Paths and methods: each route asks the service and hands the answer to a dialect or a view. No rules of their own."""
