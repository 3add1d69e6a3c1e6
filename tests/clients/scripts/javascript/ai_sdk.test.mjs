// Vercel's AI SDK with its default model for OpenAI, which asks /v1/responses.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { createOpenAI } from '@ai-sdk/openai';
import { APICallError, Output, generateObject, generateText, stepCountIs, streamText, tool } from 'ai';
import { z } from 'zod';

const openai = createOpenAI({ baseURL: process.env.OPENAI_BASE_URL, apiKey: process.env.OPENAI_API_KEY });
const { MODEL, BASE_MODEL } = process.env;
const instructions = "You are the kitchen's assistant.";
const Pie = z.object({ minutes: z.int().min(1).max(120), size: z.enum(['small', 'large']) });
const question = { model: openai(BASE_MODEL), prompt: 'What is the capital of France?', temperature: 0, maxOutputTokens: 16 };

test('generateText answers', async () => {
  const { text, usage } = await generateText(question);
  assert.match(text, /Paris/);
  assert.ok(usage.outputTokens > 0);
});

test('streamText answers in parts', async () => {
  const result = streamText({ ...question, onError: ({ error }) => { throw error; } });
  const parts = [];
  for await (const part of result.textStream) parts.push(part);
  assert.ok(parts.length > 1);
  assert.match(parts.join(''), /Paris/);
  assert.ok((await result.usage).outputTokens > 0);
});

const timers = () => {
  const set = [];
  const set_timer = tool({
    description: 'Set a timer for a dish.',
    inputSchema: z.object({ dish: z.string(), minutes: z.int() }),
    execute: async (timer) => {
      set.push(timer);
      return { done: true };
    },
  });
  return { set, tools: { set_timer } };
};
const request = {
  model: openai(MODEL),
  instructions,
  prompt: 'Set a timer for the pie: 40 minutes.',
  temperature: 0,
  maxOutputTokens: 64,
};

test('generateText calls a tool and ends with an answer in words', async () => {
  const { set, tools } = timers();
  const { text, steps } = await generateText({ ...request, tools, stopWhen: stepCountIs(3) });
  assert.deepEqual(set, [{ dish: 'pie', minutes: 40 }]);
  assert.equal(steps.length, 2);
  assert.match(text, /timer/i);
});

test('streamText calls a tool and ends with an answer in words', async () => {
  const { set, tools } = timers();
  const result = streamText({ ...request, tools, stopWhen: stepCountIs(3) });
  await result.consumeStream();
  assert.deepEqual(set, [{ dish: 'pie', minutes: 40 }]);
  assert.match(await result.text, /timer/i);
});

test('the same conversation without stored responses (store: false)', async () => {
  const { set, tools } = timers();
  const { text } = await generateText({
    ...request,
    tools,
    stopWhen: stepCountIs(3),
    providerOptions: { openai: { store: false } },
  });
  assert.deepEqual(set, [{ dish: 'pie', minutes: 40 }]);
  assert.match(text, /timer/i);
});

test('generateObject and Output.object return what the schema says', async () => {
  const asked = { model: openai(MODEL), prompt: 'A large pie takes 40 minutes.', temperature: 0, maxOutputTokens: 64 };
  const { object } = await generateObject({ ...asked, schema: Pie });
  assert.ok(Pie.safeParse(object).success);
  const { output } = await generateText({ ...asked, output: Output.object({ schema: Pie }) });
  assert.ok(Pie.safeParse(output).success);
});

test('openai.chat(model) and openai.completion(model) answer, too', async () => {
  const chat = await generateText({ ...question, model: openai.chat(BASE_MODEL) });
  assert.match(chat.text, /Paris/);
  const completion = await generateText({ ...question, model: openai.completion(BASE_MODEL) });
  assert.ok(completion.text.length > 0);
});

test('an error is an APICallError with its status', async () => {
  await assert.rejects(
    generateText({ ...question, model: openai('none'), maxRetries: 0 }),
    (error) => APICallError.isInstance(error) && error.statusCode === 404,
  );
});
