"""The demo: a page, its small backend, and a worker. `python -m client_demo` starts them with a gateway."""
