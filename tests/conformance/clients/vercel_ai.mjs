// Vercel's AI SDK.
import assert from "node:assert";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(`${process.cwd()}/`);
const { embed, generateText, jsonSchema, streamText, tool } = require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const provider = createOpenAICompatible({ name: "tested", baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY, includeUsage: true });
const model = provider(process.env.MODEL), asked = { model, prompt: "Walk?", maxOutputTokens: 24, temperature: 0, maxRetries: 0 };

const whole = await generateText(asked);
assert.ok(whole.text.length && whole.usage.outputTokens === 24);
let text = "";
for await (const part of streamText(asked).textStream) text += part;
assert.equal(text, whole.text);
const inputSchema = jsonSchema({ type: "object", properties: { hour: { enum: [1, 2] } }, required: ["hour"], additionalProperties: false });
const called = await generateText({ ...asked, maxOutputTokens: 400, tools: { clock: tool({ inputSchema }) }, toolChoice: "required" });
assert.equal(called.toolCalls[0].toolName, "clock");
const streamed = streamText({ ...asked, maxOutputTokens: 400, tools: { clock: tool({ inputSchema }) }, toolChoice: "required" });
assert.equal((await streamed.toolCalls)[0].toolName, "clock");
const vector = await embed({ model: provider.textEmbeddingModel(process.env.ENCODER), value: "a" });
assert.ok(vector.embedding.length);
console.log(JSON.parse(readFileSync("node_modules/ai/package.json")).version);
