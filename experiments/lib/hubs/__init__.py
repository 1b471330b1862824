"""Networks as hubs and trainers write and load them."""
