// Vercel's `ai`, as a client of OpenAI's API and of Mistral's.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createMistral } from "@ai-sdk/mistral";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embed, generateText, Output, streamText, tool } from "ai";
import { z } from "zod";

const baseURL = process.env.OCTET_URL + "/v1";
const apiKey = process.env.OCTET_KEY;
const providers = {
  "openai-compatible": createOpenAICompatible({ name: "octet", baseURL, apiKey, supportsStructuredOutputs: true }),
  mistral: createMistral({ baseURL, apiKey }),
};

for (const [name, provider] of Object.entries(providers)) {
  const hello = { model: provider("small"), prompt: "Say hello.", temperature: 0, maxOutputTokens: 12, maxRetries: 0 };

  test(`${name}: whole and streamed answers are the same`, async () => {
    const whole = await generateText(hello);
    const streamed = streamText(hello);
    let text = "";
    for await (const part of streamed.textStream) text += part;
    assert.equal(text, whole.text);
    assert.equal((await streamed.usage).outputTokens, whole.usage.outputTokens);
  });

  test(`${name}: a tool is called`, async () => {
    const tools = { get_weather: tool({ inputSchema: z.object({ city: z.string().max(20) }) }) };
    const forced = { ...hello, tools, toolChoice: "required", maxOutputTokens: 80 };
    const { toolCalls } = await generateText(forced);
    assert.equal(toolCalls[0].toolName, "get_weather");
    const streamed = await streamText(forced).toolCalls;
    assert.deepEqual(streamed[0].input, toolCalls[0].input);
  });

  test(`${name}: a schema holds`, async () => {
    const output = Output.object({ schema: z.object({ name: z.string().max(20), age: z.number().int().min(0).max(150) }) });
    const person = await generateText({ ...hello, output, maxOutputTokens: 100 });
    assert.deepEqual(Object.keys(person.output).sort(), ["age", "name"]);
  });

  test(`${name}: embeddings and errors`, async () => {
    const model = provider.textEmbeddingModel?.("small") ?? provider.embeddingModel("small");
    assert.equal((await embed({ model, value: "one", maxRetries: 0 })).embedding.length, 576);
    const refused = (error) => APICallError.isInstance(error) && /not found/.test(error.message);
    await assert.rejects(generateText({ ...hello, model: provider("nothing") }), refused);
  });
}
