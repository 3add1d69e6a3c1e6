"use strict";

/** Writes a chat completion for people to send themselves: with curl, and with OpenAI's client for Python. */
function requestCode(request, baseUrl) {
  const body = JSON.parse(JSON.stringify(request));
  const literal = (value, indent = "") => {
    const inner = `${indent}    `;
    if (value === true) return "True";
    if (Array.isArray(value)) return `[\n${value.map((each) => `${inner}${literal(each, inner)},\n`).join("")}${indent}]`;
    if (typeof value !== "object") return JSON.stringify(value);
    return `{${Object.entries(value).map(([key, each]) => `${JSON.stringify(key)}: ${literal(each, inner)}`).join(", ")}}`;
  };
  const settings = Object.entries(body).map(([name, value]) => `    ${name}=${literal(value, "    ")},\n`).join("");
  return {
    curl: `curl ${baseUrl}/chat/completions \\\n  -H "Authorization: Bearer $OPENAI_API_KEY" \\\n`
      + `  --json '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`,
    python: "from openai import OpenAI\n\n"
      + `client = OpenAI(base_url=${JSON.stringify(baseUrl)})  # the key is read from OPENAI_API_KEY\n`
      + `completion = client.chat.completions.create(\n${settings})\nprint(completion.choices[0].message.content)`,
  };
}
