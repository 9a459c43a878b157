"""The networks of Stable Diffusion 1.x, 2.x and XL, in plain torch: what they compute, and nothing about files or steps.

Their modules have the names that diffusers' and transformers' files give them. Those two are what the parity tests
compare with; importing them would take three times as long as importing torch.
"""
