// OpenAI's JavaScript client.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.OCTET_URL + "/v1", apiKey: process.env.OCTET_KEY, maxRetries: 0 });
const hello = { model: "small", messages: [{ role: "user", content: "Say hello." }], max_tokens: 12, temperature: 0 };
export const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};

test("whole and streamed answers are the same", async () => {
  const whole = await client.chat.completions.create(hello);
  let text = "";
  for await (const event of await client.chat.completions.create({ ...hello, stream: true })) {
    text += event.choices[0].delta.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
});

test("a tool is called, and a schema holds", async () => {
  const tools = [{ type: "function", function: { name: "get_weather", parameters } }];
  const called = await client.chat.completions.create({ ...hello, tools, tool_choice: "required", max_tokens: 80 });
  assert.ok(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).city !== undefined);
  const stream = client.chat.completions.stream({ ...hello, tools, tool_choice: "required", max_tokens: 80 });
  assert.deepEqual((await stream.finalMessage()).tool_calls[0].function, called.choices[0].message.tool_calls[0].function);
  const format = { type: "json_schema", json_schema: { name: "place", strict: true, schema: parameters } };
  const place = await client.chat.completions.create({ ...hello, response_format: format, max_tokens: 80 });
  assert.deepEqual(Object.keys(JSON.parse(place.choices[0].message.content)), ["city"]);
});

test("embeddings, which this client reads as base64 whatever comes", async () => {
  const { data } = await client.embeddings.create({ model: "small", input: "one" });
  assert.equal(data[0].embedding.length, 576);
  assert.ok(Math.abs(data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4);
});

test("responses", async () => {
  let text = "";
  const events = await client.responses.create({ model: "small", input: "Hi", max_output_tokens: 8, temperature: 0, stream: true });
  for await (const event of events) if (event.type === "response.output_text.delta") text += event.delta;
  const whole = await client.responses.create({ model: "small", input: "Hi", max_output_tokens: 8, temperature: 0 });
  assert.equal(text, whole.output_text);
});

test("errors have their class", async () => {
  await assert.rejects(client.chat.completions.create({ ...hello, model: "nothing" }), OpenAI.NotFoundError);
  await assert.rejects(client.chat.completions.create({ ...hello, top_p: 2 }), (error) => error.param === "top_p");
});
