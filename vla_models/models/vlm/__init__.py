"""The parts of ``hf_vlm``: families of vision-language models, prompts, tokens, generation, and tiny random models."""
