"""Serving against plain diffusers, in one run: `python -m cp_serve.bench -o DIR`.

The same base, adapters, prompts, steps, seeds and arrivals for all: the engine; (a) plain diffusers, one request at a
time, with `set_adapters`; (b) the same with `load_lora_weights` for each request; (c) batches of one version each, as
`@serve.batch` makes them, but without its waiting. They take turns, so that a machine that gets slower does so for all
of them; how much of it others used meanwhile is measured and told.
"""
