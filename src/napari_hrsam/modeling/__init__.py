"""Networks: image encoders, prompt encoder, mask decoder (torch only)."""
