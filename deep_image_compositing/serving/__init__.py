"""The web page and HTTP API: ``app`` handles requests, ``pool`` runs ``work`` in processes."""
