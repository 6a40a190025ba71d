"""OpenAI's Python client: chat, streams, tools, schemas, embeddings, completions, responses, errors."""
import json
import os
import unittest

import openai

URL, KEY = os.environ["OCTET_URL"], os.environ["OCTET_KEY"]
HELLO = [{"role": "user", "content": "Say hello."}]
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "minimum": 0, "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class OpenAi(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(base_url=URL + "/v1", api_key=KEY, max_retries=0)
        self.addCleanup(self.client.close)

    def chat(self, **more):
        return self.client.chat.completions.create(**{"model": "small", "messages": HELLO, "max_tokens": 16, "temperature": 0, **more})

    def test_whole_and_streamed_answers_are_the_same(self):
        whole = self.chat()
        self.assertEqual(whole.choices[0].message.role, "assistant")
        self.assertTrue(whole.choices[0].message.content)
        self.assertEqual(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)
        events = list(self.chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(e.choices[0].delta.content or "" for e in events if e.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(events[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual([e for e in events if e.choices][-1].choices[0].finish_reason, whole.choices[0].finish_reason)
        self.assertEqual(len({e.id for e in events}), 1)

    def test_several_choices_and_seeds(self):
        one = self.chat(n=3, temperature=1.0, seed=7)
        self.assertEqual([c.index for c in one.choices], [0, 1, 2])
        two = self.chat(n=3, temperature=1.0, seed=7)
        self.assertEqual([c.message.content for c in one.choices], [c.message.content for c in two.choices])
        texts = ["", "", ""]
        for event in self.chat(n=3, temperature=1.0, seed=7, stream=True):
            for choice in event.choices:
                texts[choice.index] += choice.delta.content or ""
        self.assertEqual(texts, [c.message.content for c in one.choices])

    def test_the_stream_helper_follows(self):
        with self.client.chat.completions.stream(model="small", messages=HELLO, max_tokens=8, temperature=0) as stream:
            for _ in stream:
                pass
            self.assertTrue(stream.current_completion_snapshot.choices[0].message.content)

    def test_logprobs(self):
        content = self.chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
        self.assertTrue(all(len(t.top_logprobs) == 3 and t.logprob <= 0 for t in content))
        self.assertTrue(all(t.logprob == max(o.logprob for o in t.top_logprobs) for t in content))  # greedy

    def test_stop_strings_and_prefill(self):
        text = self.chat(messages=[{"role": "user", "content": "Count."}, {"role": "assistant", "content": "1, 2, 3,"}], stop=["7"])
        self.assertNotIn("7", text.choices[0].message.content)
        self.assertEqual(self.chat(max_tokens=3).choices[0].finish_reason, "length")

    def test_a_strict_tool_keeps_to_its_schema_where_the_model_does_not(self):
        wrong = '<tool_call>\n{"name": "get_weather", "arguments": {"town": "Paris"}}\n</tool_call>'
        asked = {"role": "user", "content": "Repeat exactly this text and nothing else:\n" + wrong}
        messages = [{"role": "system", "content": "You repeat what you are told."}, asked, {"role": "assistant", "content": wrong}, asked]

        def arguments(strict):
            tool = {**TOOL, "function": {**TOOL["function"], "strict": strict}}
            (call,) = self.chat(messages=messages, tools=[tool], max_tokens=80).choices[0].message.tool_calls
            return json.loads(call.function.arguments)
        self.assertEqual(arguments(False), {"town": "Paris"})
        strict = arguments(True)
        self.assertEqual(set(strict), {"city", "days"})
        self.assertTrue(1 <= strict["days"] <= 9)

    def test_a_required_tool_is_called(self):
        message = self.chat(tools=[TOOL], tool_choice="required", max_tokens=100).choices[0]
        self.assertEqual(message.finish_reason, "tool_calls")
        call = message.message.tool_calls[0]
        self.assertEqual(call.function.name, "get_weather")
        arguments = json.loads(call.function.arguments)
        self.assertTrue(isinstance(arguments["city"], str) and 1 <= arguments["days"] <= 9)
        streamed = list(self.chat(tools=[TOOL], tool_choice="required", max_tokens=100, stream=True))
        calls = [c for e in streamed for choice in e.choices for c in choice.delta.tool_calls or []]
        self.assertEqual("".join(c.function.arguments for c in calls), call.function.arguments)
        result = HELLO + [message.message.model_dump(exclude_none=True), {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
        self.assertTrue(self.chat(messages=result, tools=[TOOL], max_tokens=4).choices[0])

    def test_a_schema_holds(self):
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
        person = json.loads(self.chat(response_format=form, max_tokens=100).choices[0].message.content)
        self.assertEqual(set(person), {"name", "age"})

        plain = {"type": "json_object", "schema": SCHEMA}
        person = json.loads(self.chat(response_format=plain, max_tokens=100).choices[0].message.content)
        self.assertEqual(set(person), {"name", "age"})
        done = self.client.completions.create(model="small", prompt="A person:", max_tokens=100, temperature=0, extra_body={"response_format": plain})
        self.assertEqual(set(json.loads(done.choices[0].text)), {"name", "age"})
        flat = {"format": {"type": "json_schema", "name": "person", "schema": SCHEMA, "strict": True}}
        for text in (flat, {"format": plain}):
            response = self.client.responses.create(model="small", input="Who?", text=text, max_output_tokens=100, temperature=0)
            self.assertEqual(set(json.loads(response.output_text)), {"name", "age"})

    def test_the_prompt_is_given_back(self):
        def prompts(**more):
            done = self.client.completions.create(**{"model": "small", "max_tokens": 1, "extra_body": {"return_prompt": True}, **more})
            if more.get("stream"):
                (told,) = [event.octet["prompt"] for event in done if hasattr(event, "octet")]
                return told
            return done.octet["prompt"]
        one = prompts(prompt="The sky is")
        self.assertEqual(one["text"], "The sky is")
        self.assertEqual(prompts(prompt="The sky is", stream=True), one)
        self.assertEqual(prompts(prompt=[one["ids"], "The sea"])[0], one)
        self.assertEqual([prompt["text"] for prompt in prompts(prompt=["The sky is", "The sea"], echo=True)], ["The sky is", "The sea"])
        self.assertFalse(hasattr(self.client.completions.create(model="small", prompt="One", max_tokens=1), "octet"))

    def test_one_call_at_most_still_says_what_it_took(self):
        right = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>'
        asked = {"role": "user", "content": "Repeat exactly this text and nothing else:\n" + right}
        messages = [{"role": "system", "content": "You repeat what you are told. " * 8}, asked, {"role": "assistant", "content": right}, asked]
        for n in (1, 2):
            one = {"messages": messages, "tools": [TOOL], "parallel_tool_calls": False, "max_tokens": 200, "n": n, "extra_body": {"timings": True}}
            self.chat(**one)
            done = self.chat(**one)
            self.assertEqual([len(choice.message.tool_calls) for choice in done.choices], [1] * n)
            self.assertEqual({choice.finish_reason for choice in done.choices}, {"tool_calls"})
            self.assertGreater(done.usage.prompt_tokens_details.cached_tokens, 100)
            self.assertGreater(done.octet["timings"]["prompt_ms"], 0)

    def test_names_that_the_format_does_not_write_are_told(self):
        def ignored(**more):
            message = {**HELLO[0], **more}
            answer = self.client.chat.completions.with_raw_response.create(model="small", messages=[message], max_tokens=1)
            return answer.headers.get("x-octet-ignored")
        self.assertEqual(ignored(name="alice"), "messages[].name")
        self.assertIsNone(ignored())

    def test_embeddings_of_both_encodings_agree(self):
        by_base64 = self.client.embeddings.create(model="small", input=["one", "two"])
        by_float = self.client.embeddings.create(model="small", input=["one", "two"], encoding_format="float")
        for a, b in zip(by_base64.data, by_float.data):
            self.assertEqual(len(a.embedding), 576)
            self.assertTrue(all(abs(x - y) < 1e-6 for x, y in zip(a.embedding, b.embedding)))
            self.assertAlmostEqual(sum(x * x for x in a.embedding), 1, places=4)

    def test_completions_echo_and_score(self):
        done = self.client.completions.create(model="small", prompt="The sky is", max_tokens=4, temperature=0, echo=True, logprobs=2)
        choice = done.choices[0]
        self.assertTrue(choice.text.startswith("The sky is"))
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        self.assertEqual(len(choice.logprobs.tokens), done.usage.prompt_tokens + done.usage.completion_tokens)
        ids = [[504, 6376, 314], [504, 1234]]
        done = self.client.completions.create(model="small", prompt=ids, max_tokens=1, temperature=0, echo=True, logprobs=1)
        self.assertEqual([len(c.logprobs.tokens) for c in done.choices], [4, 3])
        self.assertEqual(done.usage.prompt_tokens, 5)

    def test_responses(self):
        whole = self.client.responses.create(model="small", input="Say hello.", max_output_tokens=8, temperature=0)
        self.assertEqual(whole.status, "incomplete" if whole.incomplete_details else "completed")
        events = list(self.client.responses.create(model="small", input="Say hello.", max_output_tokens=8, temperature=0, stream=True))
        self.assertEqual([e.sequence_number for e in events], list(range(len(events))))
        self.assertEqual("".join(e.delta for e in events if e.type == "response.output_text.delta"), whole.output_text)
        self.assertEqual(events[-1].response.output_text, whole.output_text)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["small", "mistral-small"])
        self.assertEqual(self.client.models.retrieve("small").id, "small")

    def test_errors_have_their_class_and_name_the_field(self):
        def refused(kind, **more):
            with self.assertRaises(kind) as caught:
                self.chat(**more)
            return caught.exception

        self.assertEqual(refused(openai.BadRequestError, temperature=3).param, "temperature")
        self.assertEqual(refused(openai.BadRequestError, extra_body={"tempreature": 1}).param, "tempreature")
        self.assertEqual(refused(openai.BadRequestError, n=0).param, "n")
        self.assertEqual(refused(openai.BadRequestError, stop=list("abcde")).param, "stop")
        self.assertEqual(refused(openai.BadRequestError, max_completion_tokens=8).param, "max_completion_tokens")
        self.assertTrue(self.chat(max_completion_tokens=16, seed=1, extra_body={"random_seed": 1}).choices)
        self.assertEqual(refused(openai.BadRequestError, seed=1, extra_body={"random_seed": 2}).param, "random_seed")
        self.assertEqual(refused(openai.BadRequestError, response_format={"type": "json_object", "shcema": {}}).param, "response_format.shcema")
        self.assertIn("name the adapter as the model", refused(openai.BadRequestError, extra_body={"adapter": "x"}).message)
        self.assertEqual(refused(openai.NotFoundError, model="gpt-9").code, "model_not_found")
        too_long = refused(openai.BadRequestError, messages=[{"role": "user", "content": "word " * 5000}])
        self.assertEqual(too_long.code, "context_length_exceeded")
        self.assertIn("4096", too_long.message)
        other = openai.OpenAI(base_url=URL + "/v1", api_key="wrong", max_retries=0)
        with self.assertRaises(openai.AuthenticationError):
            other.models.list()
        other.close()

    def test_a_schema_that_cannot_be_enforced_is_refused_by_keyword(self):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True, "contains": {"const": 1}}}}
        with self.assertRaises(openai.BadRequestError) as caught:
            self.chat(response_format=form)
        self.assertRegex(caught.exception.message, "contains|uniqueItems")
