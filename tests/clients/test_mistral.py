"""Mistral's Python client: chat, streams, tools, prefix, embeddings, errors."""
import json
import os
import unittest

from mistralai.client import Mistral, errors

from test_openai import HELLO, SCHEMA, TOOL


class MistralClient(unittest.TestCase):
    def setUp(self):
        self.client = Mistral(server_url=os.environ["OCTET_URL"], api_key=os.environ["OCTET_KEY"])
        self.addCleanup(self.client.__exit__, None, None, None)

    def chat(self, **more):
        return self.client.chat.complete(**{"model": "mistral-small", "messages": HELLO, "max_tokens": 12, "temperature": 0, **more})

    def test_whole_and_streamed_answers_are_the_same(self):
        whole = self.chat(random_seed=3, safe_prompt=True)
        with self.client.chat.stream(model="mistral-small", messages=HELLO, max_tokens=12, temperature=0, random_seed=3, safe_prompt=True) as stream:
            events = list(stream)
        text = "".join(e.data.choices[0].delta.content for e in events)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertTrue(events[-1].data.choices[0].finish_reason and events[-1].data.usage.completion_tokens)

    def test_the_answer_begins_with_the_prefix(self):
        messages = HELLO + [{"role": "assistant", "content": "Good day", "prefix": True}]
        self.assertTrue(self.chat(messages=messages).choices[0].message.content.startswith("Good day"))

    def test_a_tool_is_called_whole_and_streamed(self):
        whole = self.chat(tools=[TOOL], tool_choice="any", max_tokens=100).choices[0].message.tool_calls[0]
        self.assertRegex(whole.id, "^[a-zA-Z0-9]{9}$")
        with self.client.chat.stream(model="small", messages=HELLO, tools=[TOOL], tool_choice="any", max_tokens=100, temperature=0) as events:
            calls = [c for e in events for c in e.data.choices[0].delta.tool_calls or []]
        self.assertEqual(calls[0].function.arguments, whole.function.arguments)
        self.assertIn("city", json.loads(whole.function.arguments))

    def test_more_stop_texts_are_taken_than_by_openai(self):
        self.assertTrue(self.chat(stop=[f"end {i}" for i in range(6)]).choices[0])
        with self.assertRaises(errors.HTTPValidationError) as caught:
            self.chat(stop=[f"end {i}" for i in range(65)])
        self.assertIn("stop", str(caught.exception.data.detail[0].loc))

    def test_a_schema_holds(self):
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
        self.assertEqual(set(json.loads(self.chat(response_format=form, max_tokens=100).choices[0].message.content)), {"name", "age"})

    def test_embeddings_and_models(self):
        self.assertEqual(len(self.client.embeddings.create(model="small", inputs=["one"]).data[0].embedding), 576)
        self.assertEqual([m.id for m in self.client.models.list().data], ["small", "mistral-small"])

    def test_errors(self):
        with self.assertRaises(errors.SDKError) as caught:
            self.chat(model="nothing")
        self.assertEqual(json.loads(caught.exception.body)["code"], "1500")
        with self.assertRaises(errors.HTTPValidationError) as caught:
            self.chat(temperature=9)
        self.assertIn("temperature", str(caught.exception.data.detail[0].loc))
        with self.assertRaises(errors.HTTPValidationError):
            self.client.fim.complete(model="small", prompt="def f():", suffix="return 1")  # no such tokens in this model
