"""The user study: creation, web server and scores."""
