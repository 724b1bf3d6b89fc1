/**
 * docs/events.md, made from the table in src/worker/event.ts. `npm run pages` writes it; scripts/tidy.ts
 * compares.
 */
import { writeFileSync } from 'node:fs';
import { EVENTS } from '../src/worker/event.ts';

export const EVENTS_PAGE = 'docs/events.md';

const HEAD = `# Events

*Made from \`src/worker/event.ts\` by \`npm run pages\`; \`npm run check\` says when it is out of date.*

\`GET /v1/events\` on every worker: server-sent events, from now on; what was before is in the journal (\`godwit runs\`). Each has its \`code\`, its kind (also as \`event:\`), the id of what it is about
(\`subject\`), a sentence for people (\`message\`), the worker, the wall clock (\`atMs\`), and of \`data\` what there is to say. Codes stay; sentences may change. Workers of earlier versions
give no \`code\`. \`godwit_events_total\` counts them by code (docs/metrics.md).

| code | kind | data | what has happened |
|---|---|---|---|`;

export function eventsPage(): string {
  const rows = Object.entries(EVENTS).map(([code, { kind, what, data }]) => {
    const fields = data.map((field) => `\`${field}\``).join(', ');
    return `| \`${code}\` | ${kind} | ${fields} | ${what} |`;
  });
  return `${[HEAD, ...rows].join('\n')}\n`;
}

if (import.meta.filename === process.argv[1]) writeFileSync(EVENTS_PAGE, eventsPage());
