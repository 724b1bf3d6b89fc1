/**
 * docs/endpoints.md, made from the tables in src/contract. `npm run pages` writes it; scripts/tidy.ts
 * compares.
 */
import { writeFileSync } from 'node:fs';
import type { TSchema } from 'typebox';
import type { LineOperation } from '../src/base/line-conversation.ts';
import { type Conversation, type Endpoint, laterParts } from '../src/contract/endpoint.ts';
import { HEALTH, OPERATOR } from '../src/contract/operator.ts';
import { PEER } from '../src/contract/peer.ts';
import { SHIM } from '../src/shim/protocol.ts';

export const ENDPOINTS_PAGE = 'docs/endpoints.md';

const HEAD = `# What a worker can be asked

*Made from \`src/contract\` by \`npm run pages\`; \`npm run check\` says when it is out of date.*

\`/openapi.json\` of a worker has the schemas of all of it. A question mark is behind what may be left out, and behind what has a default; docs/api.md has the rest: tokens, certificates,
errors, streams (\`GET /v1/events\`, \`GET /v1/machines/{ref}/logs\`, \`GET /v1/machines/{ref}/session\`).
`;

const LINES_HEAD = `## What a worker asks a shim

Over the unix socket \`shim.sock\` of the machine's runtime folder, as JSON lines: \`src/shim/protocol.ts\`.

| operation | asks with | answer | rejects with |
|---|---|---|---|`;

const CALLERS: Readonly<Record<Endpoint['caller'], string>> = {
  anybody: 'Anybody, without a token',
  operator: 'Whoever has the token',
  worker:
    'Another worker: with the token, and its certificate where there are any; every question may be repeated',
};

export function endpointsPage(): string {
  const lines = [HEAD];
  for (const [caller, table] of [
    ['anybody', HEALTH],
    ['operator', OPERATOR],
    ['worker', PEER],
  ] as const satisfies [Endpoint['caller'], Conversation][]) {
    lines.push(`## ${CALLERS[caller]}`, '', '| name | request | asks with | answer |', '|---|---|---|---|');
    for (const [name, endpoint] of Object.entries(table) as [string, Endpoint][]) {
      const { method, path, summary, query, body, status = 200, since } = endpoint;
      const onward = endpoint.ofVolume ? ' (its volume answers)' : '';
      const later = Object.keys(laterParts(endpoint)).map((part) => ` (\`${part}\` came later)`);
      const release = typeof since === 'string' ? `, since ${since}` : '';
      const route = `\`${method} ${path.replace(/:(\w+)/g, '{$1}')}\``;
      const code = status === 200 ? '' : `${status}. `;
      lines.push(
        `| \`${name}\` | ${route} | ${fields(query ?? body)}${later.join('')} | ${code}${summary}${onward}${release} |`,
      );
    }
    lines.push('');
  }
  lines.push(LINES_HEAD);
  for (const [op, { args, summary, errors = [] }] of Object.entries(SHIM) as [string, LineOperation][]) {
    const names = args.fields.length === 0 ? '' : `\`${args.fields.join(', ')}\``;
    lines.push(`| \`${op}\` | ${names} | ${summary} | ${errors.map((code) => `\`${code}\``).join(' ')} |`);
  }
  return `${lines.join('\n')}\n`;
}

function fields(schema: TSchema | undefined): string {
  if (schema === undefined) return '';
  const { properties = {}, required = [] } = schema as {
    properties?: Record<string, { default?: unknown }>;
    required?: string[];
  };
  const names = Object.entries(properties).map(([name, property]) =>
    required.includes(name) && property.default === undefined ? name : `${name}?`,
  );
  return names.length === 0 ? '' : `\`${names.join(', ')}\``;
}

if (import.meta.filename === process.argv[1]) writeFileSync(ENDPOINTS_PAGE, endpointsPage());
