"""The demo: a page, and the small backend that such a page has. `python -m client_demo` starts it with a gateway."""
