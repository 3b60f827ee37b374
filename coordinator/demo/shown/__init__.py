"""What a user sees of the demo: the screen while it runs, the plots and the page of what came of it."""
