"""What maskjax costs and what it buys, measured."""
