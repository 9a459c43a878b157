"""The rooms of the dashboard, one module each. Every one adds its routes to a router."""
