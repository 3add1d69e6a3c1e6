// openai for JavaScript: only the base URL and the key differ, and both are read from the environment.

import assert from 'node:assert/strict';
import { createReadStream } from 'node:fs';
import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import OpenAI, { toFile } from 'openai';
import { zodFunction, zodResponseFormat, zodTextFormat } from 'openai/helpers/zod';
import { z } from 'zod';

const client = new OpenAI();
const { MODEL, BASE_MODEL } = process.env;
const system = { role: 'system', content: "You are the kitchen's assistant." };
const ask = (content) => [system, { role: 'user', content }];
const timer = {
  type: 'function',
  function: {
    name: 'set_timer',
    description: 'Set a timer for a dish.',
    parameters: {
      type: 'object',
      properties: { dish: { type: 'string' }, minutes: { type: 'integer' } },
      required: ['dish', 'minutes'],
    },
  },
};
const oven = {
  type: 'function',
  function: {
    name: 'heat_oven',
    description: 'Heat the oven.',
    parameters: { type: 'object', properties: { celsius: { type: 'integer' } }, required: ['celsius'] },
  },
};

const examples = Array.from({ length: 12 }, (_, table) => ({
  messages: [
    { role: 'user', content: `What is on the menu at table ${table}?` },
    { role: 'assistant', content: 'Leek soup.' },
  ],
}));
const jsonl = (values) => values.map((value) => JSON.stringify(value) + '\n').join('');

test('a file is uploaded from a stream, trained on until its job succeeds, and its model answers', async () => {
  const path = join(await mkdtemp(join(tmpdir(), 'toque-')), 'menu.jsonl');
  await writeFile(path, jsonl(examples));
  const file = await client.files.create({ file: createReadStream(path), purpose: 'fine-tune' });
  assert.equal(file.filename, 'menu.jsonl');
  assert.equal(await (await client.files.content(file.id)).text(), jsonl(examples));
  let job = await client.fineTuning.jobs.create({
    model: BASE_MODEL,
    training_file: file.id,
    suffix: 'menu-js',
    method: { type: 'supervised', supervised: { hyperparameters: { n_epochs: 4, batch_size: 4 } } },
  });
  while (!['succeeded', 'failed', 'cancelled'].includes(job.status)) {
    await sleep(1000);
    job = await client.fineTuning.jobs.retrieve(job.id);
  }
  assert.equal(job.status, 'succeeded', JSON.stringify(job.error));
  const events = [];
  for await (const event of client.fineTuning.jobs.listEvents(job.id, { limit: 3 })) events.push(event);
  assert.ok(events.length > 3);
  const answer = await client.chat.completions.create({
    model: job.fine_tuned_model,
    messages: [{ role: 'user', content: 'What is on the menu at table 40?' }],
    temperature: 0,
    max_tokens: 8,
  });
  assert.equal(answer.choices[0].message.content, 'Leek soup.');
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes(job.fine_tuned_model));
});

test('an answer is whole, and is streamed with its usage', async () => {
  const request = { model: BASE_MODEL, messages: [{ role: 'user', content: 'What is the capital of France?' }], temperature: 0, max_tokens: 12 };
  const answer = await client.chat.completions.create(request);
  assert.match(answer.choices[0].message.content, /Paris/);
  const stream = await client.chat.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = '';
  let usage;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? '';
    usage = chunk.usage;
  }
  assert.match(text, /Paris/);
  assert.ok(usage.completion_tokens > 0);
});

test('a tool is called, whole and in a stream', async () => {
  const request = {
    model: MODEL,
    messages: ask('Set a timer for the pie: 40 minutes.'),
    tools: [timer, oven],
    temperature: 0,
  };
  const whole = await client.chat.completions.create(request);
  const streamed = await client.chat.completions.stream(request).finalChatCompletion();
  for (const answer of [whole, streamed]) {
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(call.function.name, 'set_timer');
    assert.deepEqual(JSON.parse(call.function.arguments), { dish: 'pie', minutes: 40 });
  }
});

test('runTools calls the function and ends with an answer in words', async () => {
  const called = [];
  const runner = client.chat.completions.runTools({
    model: MODEL,
    messages: ask('Set a timer for the pie: 40 minutes.'),
    temperature: 0,
    max_tokens: 64,
    tools: [
      {
        type: 'function',
        function: {
          ...timer.function,
          parse: JSON.parse,
          function: (argument) => {
            called.push(argument);
            return JSON.stringify({ done: true });
          },
        },
      },
    ],
  });
  const content = await runner.finalContent();
  assert.deepEqual(called, [{ dish: 'pie', minutes: 40 }]);
  assert.match(content, /timer/i);
});

const Pie = z.object({ minutes: z.int().min(1).max(120), size: z.enum(['small', 'large']) });

test('zod schemas are parsed from answers and from arguments', async () => {
  const answer = await client.chat.completions.parse({
    model: MODEL,
    messages: ask('A large pie takes 40 minutes.'),
    response_format: zodResponseFormat(Pie, 'pie'),
    temperature: 0,
    max_tokens: 64,
  });
  assert.ok(Pie.safeParse(answer.choices[0].message.parsed).success);
  const called = await client.chat.completions.parse({
    model: MODEL,
    messages: ask('A large pie takes 40 minutes.'),
    tools: [zodFunction({ name: 'bake', parameters: Pie })],
    tool_choice: { type: 'function', function: { name: 'bake' } },
    temperature: 0,
    max_tokens: 64,
  });
  assert.ok(Pie.safeParse(called.choices[0].message.tool_calls[0].function.parsed_arguments).success);
});

test('texts are completed', async () => {
  const answer = await client.completions.create({
    model: BASE_MODEL,
    prompt: 'The capital of France is',
    temperature: 0,
    max_tokens: 4,
  });
  assert.match(answer.choices[0].text, /Paris/);
});

test('responses are whole, streamed, parsed and continued', async () => {
  const request = { model: BASE_MODEL, input: 'What is the capital of France?', temperature: 0, max_output_tokens: 16 };
  const first = await client.responses.create(request);
  assert.match(first.output_text, /Paris/);
  const kinds = new Set();
  const stream = client.responses.stream(request);
  for await (const event of stream) kinds.add(event.type);
  assert.ok(kinds.has('response.output_text.delta'));
  assert.match((await stream.finalResponse()).output_text, /Paris/);
  const parsed = await client.responses.parse({
    model: MODEL,
    input: 'A large pie takes 40 minutes.',
    text: { format: zodTextFormat(Pie, 'pie') },
    temperature: 0,
    max_output_tokens: 64,
  });
  assert.ok(Pie.safeParse(parsed.output_parsed).success);
  const second = await client.responses.create({
    model: BASE_MODEL,
    previous_response_id: first.id,
    input: 'And of Italy?',
    temperature: 0,
    max_output_tokens: 16,
  });
  assert.equal(second.previous_response_id, first.id);
  assert.match(second.output_text, /Rome/);
});

test('a function is called through responses, and its output is answered', async () => {
  const tools = [{ type: 'function', strict: false, ...timer.function }];
  const base = { model: MODEL, instructions: system.content, tools, temperature: 0, max_output_tokens: 64 };
  const first = await client.responses.create({ ...base, input: 'Set a timer for the pie: 40 minutes.' });
  const call = first.output.find((item) => item.type === 'function_call');
  assert.deepEqual(JSON.parse(call.arguments), { dish: 'pie', minutes: 40 });
  const second = await client.responses.create({
    ...base,
    previous_response_id: first.id,
    input: [{ type: 'function_call_output', call_id: call.call_id, output: '{"done": true}' }],
  });
  assert.match(second.output_text, /timer/i);
});

test('a batch is answered', async () => {
  const requests = [1, 2].map((number) => ({
    custom_id: `question-${number}`,
    method: 'POST',
    url: '/v1/chat/completions',
    body: { model: BASE_MODEL, messages: ask(`What is ${number} plus 1?`), max_tokens: 4 },
  }));
  const file = await client.files.create({ file: await toFile(Buffer.from(jsonl(requests)), 'r.jsonl'), purpose: 'batch' });
  let batch = await client.batches.create({
    input_file_id: file.id,
    endpoint: '/v1/chat/completions',
    completion_window: '24h',
  });
  for (let second = 0; second < 200 && !['completed', 'failed', 'expired'].includes(batch.status); second++) {
    await sleep(1000);
    batch = await client.batches.retrieve(batch.id);
  }
  assert.equal(batch.status, 'completed');
  const lines = (await (await client.files.content(batch.output_file_id)).text()).trim().split('\n').map(JSON.parse);
  assert.deepEqual(lines.map((line) => line.custom_id).sort(), ['question-1', 'question-2']);
});

test('a file is uploaded in parts', async () => {
  const data = Buffer.from(jsonl(examples));
  const upload = await client.uploads.create({
    bytes: data.length,
    filename: 'parts.jsonl',
    mime_type: 'application/jsonl',
    purpose: 'fine-tune',
  });
  const half = Math.floor(data.length / 2);
  const parts = [];
  for (const bytes of [data.subarray(0, half), data.subarray(half)])
    parts.push(await client.uploads.parts.create(upload.id, { data: await toFile(bytes, 'part') }));
  const done = await client.uploads.complete(upload.id, { part_ids: parts.map((part) => part.id) });
  assert.equal(done.status, 'completed');
  assert.equal(done.file.bytes, data.length);
});

test('errors have the classes of the client', async () => {
  await assert.rejects(
    client.chat.completions.create({ model: BASE_MODEL, messages: ask('Hi'), temperature: 3 }),
    (error) => error instanceof OpenAI.BadRequestError && error.param === 'temperature',
  );
  await assert.rejects(client.fineTuning.jobs.retrieve('ftjob-none'), OpenAI.NotFoundError);
  await assert.rejects(new OpenAI({ apiKey: 'sk-wrong' }).models.list(), OpenAI.AuthenticationError);
});

test('headers are read beside the answer', async () => {
  const { response, request_id } = await client.models.list().withResponse();
  assert.equal(response.headers.get('x-request-id'), request_id);
});
