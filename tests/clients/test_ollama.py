"""Ollama's Python client: chat, generate, tools, formats, embeddings, models, errors."""
import json
import os
import unittest

import ollama
import openai

from test_openai import HELLO, SCHEMA, TOOL

OPTIONS = {"temperature": 0, "num_predict": 12, "num_ctx": 8192}


class OllamaClient(unittest.TestCase):
    def setUp(self):
        self.client = ollama.Client(host=os.environ["OCTET_URL"], headers={"Authorization": "Bearer " + os.environ["OCTET_KEY"]})
        self.addCleanup(self.client.close)

    def test_whole_and_streamed_answers_are_the_same(self):
        whole = self.client.chat("small", HELLO, options=OPTIONS)
        self.assertTrue(whole.done and whole.eval_count and whole.prompt_eval_count)
        lines = list(self.client.chat("small:latest", HELLO, options=OPTIONS, stream=True))
        self.assertEqual("".join(line.message.content for line in lines), whole.message.content)
        self.assertIn(lines[-1].done_reason, ("stop", "length"))

    def test_the_last_message_of_the_assistant_is_continued(self):
        said = HELLO + [{"role": "assistant", "content": "Good day, my dear"}]
        greedy = {**OPTIONS, "repeat_penalty": 1}
        continued = self.client.chat("small", said, options=greedy).message.content
        with openai.OpenAI(base_url=os.environ["OCTET_URL"] + "/v1", api_key=os.environ["OCTET_KEY"], max_retries=0) as other:
            same = other.chat.completions.create(model="small", messages=said, temperature=0, max_tokens=OPTIONS["num_predict"])
        self.assertEqual(continued, same.choices[0].message.content)
        self.assertNotEqual(continued, self.client.chat("small", HELLO, options=greedy).message.content)

    def test_generate(self):
        raw = self.client.generate("small", "The sky is", raw=True, options=OPTIONS)
        lines = list(self.client.generate("small", "The sky is", raw=True, options=OPTIONS, stream=True))
        self.assertEqual("".join(line.response for line in lines), raw.response)
        self.assertEqual(self.client.generate("small", "").done_reason, "load")

    def test_what_cannot_be_done_is_refused_and_more_stop_texts_are_taken(self):
        stops = [f"end {i}" for i in range(6)]
        self.assertTrue(self.client.chat("small", HELLO, options={**OPTIONS, "stop": stops, "penalize_newline": True}, keep_alive="5m").done)
        self.assertTrue(self.client.generate("small", "Hi", system="Be brief.", options=OPTIONS).done)
        refused = [
            ("penalize_newline", lambda: self.client.chat("small", HELLO, options={"penalize_newline": False})),
            ("stop", lambda: self.client.chat("small", HELLO, options={"stop": ["x" * 1025]})),
            ("system", lambda: self.client.generate("small", "Hi", system="Be brief.", raw=True)),
            ("keep_alive", lambda: self.client.chat("small", HELLO, keep_alive="soon")),
        ]
        for name, ask in refused:
            with self.assertRaises(ollama.ResponseError) as caught:
                ask()
            self.assertEqual(caught.exception.status_code, 400)
            self.assertIn(name, caught.exception.error)

    def test_a_format_holds(self):
        options = {**OPTIONS, "num_predict": 100}
        person = json.loads(self.client.chat("small", HELLO, format=SCHEMA, options=options).message.content)
        self.assertEqual(set(person), {"name", "age"})

    def test_tools_may_be_offered(self):
        self.assertEqual(self.client.chat("small", HELLO, tools=[TOOL], options=OPTIONS).message.role, "assistant")
        said = HELLO + [
            {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather", "arguments": {"city": "Rome", "days": 1}}}]},
            {"role": "tool", "tool_name": "get_weather", "content": "sunny"},
        ]
        self.assertTrue(self.client.chat("small", said, tools=[TOOL], options=OPTIONS).done)

    def test_models_and_embeddings(self):
        self.assertEqual(self.client.list().models[0].model, "small")
        shown = self.client.show("small")
        self.assertEqual(shown.modelinfo["llama.context_length"], 4096)
        self.assertIn("completion", shown.capabilities)
        self.assertEqual(len(self.client.embed("small", ["one", "two"]).embeddings), 2)
        self.assertTrue(self.client.ps().models)

    def test_errors(self):
        with self.assertRaises(ollama.ResponseError) as caught:
            self.client.chat("nothing", HELLO)
        self.assertEqual(caught.exception.status_code, 404)
        self.assertIn("model 'nothing' not found", caught.exception.error)
        with self.assertRaises(ollama.ResponseError) as caught:
            self.client.chat("small", [{"role": "user", "content": "word " * 5000}])
        self.assertIn("4096", caught.exception.error)
