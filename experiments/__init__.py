"""What depfuse is measured, proved and shown by."""
