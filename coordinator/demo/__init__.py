"""The demo: a broker, a coordinator and four devices on one machine, and a page with what came of it."""
