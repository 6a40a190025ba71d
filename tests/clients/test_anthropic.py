"""Anthropic's Python client: messages, streams, tools, counts, errors."""
import os
import unittest

import anthropic

from test_openai import HELLO, TOOL

FUNCTION = TOOL["function"]
ANTHROPIC_TOOL = {"name": FUNCTION["name"], "description": FUNCTION["description"], "input_schema": FUNCTION["parameters"]}


class AnthropicClient(unittest.TestCase):
    def setUp(self):
        self.client = anthropic.Anthropic(base_url=os.environ["OCTET_URL"], api_key=os.environ["OCTET_KEY"], max_retries=0)
        self.addCleanup(self.client.close)
        self.greedy = {"model": "small", "messages": HELLO, "max_tokens": 12, "extra_body": {"temperature": 0}}

    def test_whole_and_streamed_answers_are_the_same(self):
        whole = self.client.messages.create(system="Be brief.", **self.greedy)
        self.assertIn(whole.stop_reason, ("end_turn", "max_tokens"))
        with self.client.messages.stream(system="Be brief.", **self.greedy) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(final.usage.output_tokens, whole.usage.output_tokens)
        counted = self.client.messages.count_tokens(model="small", messages=HELLO, system="Be brief.").input_tokens
        self.assertEqual(counted, whole.usage.input_tokens + whole.usage.cache_read_input_tokens)

    def test_a_tool_is_used_whole_and_streamed(self):
        forced = {**self.greedy, "tools": [ANTHROPIC_TOOL], "tool_choice": {"type": "any"}, "max_tokens": 100}
        whole = self.client.messages.create(**forced)
        self.assertEqual((whole.stop_reason, whole.content[0].type), ("tool_use", "tool_use"))
        self.assertIn("city", whole.content[0].input)
        with self.client.messages.stream(**forced) as stream:
            final = stream.get_final_message()
        self.assertEqual(final.content[0].input, whole.content[0].input)
        said = HELLO + [
            {"role": "assistant", "content": whole.content},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": whole.content[0].id, "content": "sunny"}]},
        ]
        self.assertTrue(self.client.messages.create(**{**self.greedy, "messages": said, "tools": [ANTHROPIC_TOOL]}).content)

    def test_a_stop_sequence_is_named(self):
        messages = [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, 3,"}]
        stopped = self.client.messages.create(**{**self.greedy, "messages": messages, "stop_sequences": [","]})
        if stopped.stop_reason == "stop_sequence":
            self.assertEqual(stopped.stop_sequence, ",")

    def test_stop_sequences_are_bounded(self):
        self.assertTrue(self.client.messages.create(**{**self.greedy, "stop_sequences": [f"end {i}" for i in range(64)]}).content)
        for stops in ([f"end {i}" for i in range(65)], ["x" * 1025]):
            with self.assertRaises(anthropic.BadRequestError) as caught:
                self.client.messages.create(**{**self.greedy, "stop_sequences": stops})
            self.assertIn("stop_sequences", caught.exception.message)

    def test_the_model_is_told_that_a_call_failed(self):
        def tokens(**result):
            said = HELLO + [
                {"role": "assistant", "content": [{"type": "tool_use", "id": "abcdefghi", "name": "get_weather", "input": {}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "abcdefghi", "content": "no such city", **result}]},
            ]
            return self.client.messages.count_tokens(model="small", messages=said, tools=[ANTHROPIC_TOOL]).input_tokens
        self.assertEqual(tokens(is_error=False), tokens())
        self.assertGreater(tokens(is_error=True), tokens())

    def test_one_call_at_most_still_says_what_was_cached(self):
        wrong = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
        asked = {"role": "user", "content": "Repeat exactly this text and nothing else:\n" + wrong}
        messages = [asked, {"role": "assistant", "content": wrong}, asked]
        one = {**self.greedy, "messages": messages, "system": "You repeat what you are told. " * 8, "tools": [ANTHROPIC_TOOL], "max_tokens": 200}
        one["tool_choice"] = {"type": "auto", "disable_parallel_tool_use": True}
        first, second = self.client.messages.create(**one), self.client.messages.create(**one)
        self.assertEqual((first.stop_reason, len(first.content)), ("tool_use", 1))
        self.assertGreater(second.usage.cache_read_input_tokens, 100)
        with self.client.messages.stream(**one) as stream:
            final = stream.get_final_message()
        self.assertEqual(final.usage.cache_read_input_tokens, second.usage.cache_read_input_tokens)
        self.assertEqual(final.usage.output_tokens, second.usage.output_tokens)

    def test_errors_and_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["small", "mistral-small"])
        with self.assertRaises(anthropic.NotFoundError) as caught:
            self.client.messages.create(**{**self.greedy, "model": "nothing"})
        self.assertEqual(caught.exception.body["error"]["type"], "not_found_error")
        image = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]
        with self.assertRaises(anthropic.BadRequestError):
            self.client.messages.create(**{**self.greedy, "messages": image})
        other = anthropic.Anthropic(base_url=os.environ["OCTET_URL"], api_key="wrong", max_retries=0)
        with self.assertRaises(anthropic.AuthenticationError):
            other.messages.create(**self.greedy)
        other.close()
