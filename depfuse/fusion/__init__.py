"""One fusion, stage after stage."""
