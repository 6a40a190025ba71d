// Mistral's JavaScript client.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Mistral } from "@mistralai/mistralai";
import { parameters } from "./openai.test.mjs";

const client = new Mistral({ serverURL: process.env.OCTET_URL, apiKey: process.env.OCTET_KEY, retryConfig: { strategy: "none" } });
const hello = { model: "mistral-small", messages: [{ role: "user", content: "Say hello." }], maxTokens: 12, temperature: 0 };

test("whole and streamed answers are the same", async () => {
  const whole = await client.chat.complete(hello);
  let text = "";
  for await (const event of await client.chat.stream(hello)) text += event.data.choices[0].delta.content ?? "";
  assert.equal(text, whole.choices[0].message.content);
});

test("a tool is called, whole and streamed", async () => {
  const forced = {
    ...hello,
    maxTokens: 80,
    tools: [{ type: "function", function: { name: "get_weather", parameters } }],
    toolChoice: "any",
  };
  const whole = (await client.chat.complete(forced)).choices[0].message.toolCalls[0];
  const calls = [];
  for await (const event of await client.chat.stream(forced)) calls.push(...(event.data.choices[0].delta.toolCalls ?? []));
  assert.equal(calls.length, 1);
  assert.deepEqual(calls[0].function, whole.function);
});

test("embeddings, models, errors", async () => {
  assert.equal((await client.embeddings.create({ model: "small", inputs: ["one"] })).data[0].embedding.length, 576);
  assert.deepEqual((await client.models.list()).data.map((model) => model.id), ["small", "mistral-small"]);
  await assert.rejects(client.chat.complete({ ...hello, model: "nothing" }), (error) => error.statusCode === 400);
  await assert.rejects(client.chat.complete({ ...hello, temperature: 9 }), (error) => error.statusCode === 422);
});
