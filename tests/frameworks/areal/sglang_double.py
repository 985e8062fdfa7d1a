"""A server that speaks what AReaL's SGLang client asks for, with a real model behind it: a test double, not support.

The endpoints of areal/engine/sglang_remote.py. Pictures are decoded and prepared by transformers' own image processor.
"""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aiohttp import web
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor


class Server:
    """``with Server(checkpoint) as server: server.address``.

    held: so many prompts are answered, once another one has its first token; the answers to others stop after that token
        until generation has been paused once. So an update of the weights finds something to abort, on any machine.
    """

    def __init__(self, checkpoint: Path, held: int | None = None) -> None:
        self.held, self.paused = held, False
        self.answered: set[str] = set()  # the prompts that are not held, by their first picture
        self.begun = asyncio.Event()  # a held answer has its first token
        self.generated = self.updates = self.aborts = 0
        self.loaded: list[str] = []
        self._load(str(checkpoint))
        vision = self.model.config.vision_config
        self.processor = Qwen2VLImageProcessor(
            do_resize=False, patch_size=vision.patch_size, temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
        )  # fmt: skip
        self._ready = threading.Event()

    def _load(self, checkpoint: str) -> None:
        self.model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.loaded.append(checkpoint)

    def __enter__(self) -> Server:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        return self

    def __exit__(self, *unused: Any) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def _serve(self) -> None:
        self._loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self._loop)
        app = web.Application(client_max_size=1 << 30)
        posts = {
            "/generate": self.generate, "/update_weights_from_disk": self.update,
            "/pause_generation": self.pause, "/continue_generation": self.go_on,
        }  # fmt: skip
        app.add_routes([*(web.post(path, handler) for path, handler in posts.items()), web.get("/health", self.health)])
        runner = web.AppRunner(app)
        self._loop.run_until_complete(runner.setup())
        site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(site.start())
        self.address = f"127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())

    @torch.no_grad()
    def next_token(self, ids: list[int], pictures: dict[str, Any], temperature: float) -> tuple[int, float]:
        tokens = torch.tensor([ids])
        kinds = (tokens == self.model.config.image_token_id).int()
        logits = self.model(input_ids=tokens, mm_token_type_ids=kinds, use_cache=False, **pictures).logits[0, -1].float()
        if temperature == 0.0:
            return int(logits.argmax()), 0.0
        logprobs = torch.log_softmax(logits / temperature, -1)
        token = int(torch.multinomial(logprobs.exp(), 1))
        return token, float(logprobs[token])

    async def generate(self, request: web.Request) -> web.Response:
        asked = await request.json()
        sampling, ids, out = asked["sampling_params"], list(asked["input_ids"]), []
        decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in asked["image_data"]]
        pictures = dict(self.processor(images=decoded, return_tensors="pt"))
        reason: dict[str, Any] = {"type": "length", "length": sampling["max_new_tokens"]}
        self.generated += 1
        prompt = asked["image_data"][0]
        if self.held is not None and len(self.answered) < self.held:
            self.answered.add(prompt)
        for written in range(sampling["max_new_tokens"]):
            if self.held is not None and written == 1:
                if prompt in self.answered:
                    await self.begun.wait()
                else:
                    self.begun.set()
                    while not (self.paused or self.updates):
                        await asyncio.sleep(0.05)
            if self.paused:
                self.aborts += 1
                reason = {"type": "abort", "message": "Abort during weight update"}
                break
            token, logprob = self.next_token(ids, pictures, sampling["temperature"])
            ids.append(token)
            out.append([logprob, token, None])
            if token in sampling["stop_token_ids"]:
                reason = {"type": "stop", "matched": token}
                break
            await asyncio.sleep(0)
        meta = {"finish_reason": reason, "output_token_logprobs": out, "prompt_tokens": len(asked["input_ids"])}
        return web.json_response({"text": "", "meta_info": meta | {"completion_tokens": len(out)}})

    async def update(self, request: web.Request) -> web.Response:
        self._load((await request.json())["model_path"])
        self.updates += 1
        return web.json_response({"success": True})

    async def pause(self, request: web.Request) -> web.Response:
        self.paused = True
        return web.json_response({"ok": True})

    async def go_on(self, request: web.Request) -> web.Response:
        self.paused = False
        return web.json_response({"ok": True})

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"ok": True})
