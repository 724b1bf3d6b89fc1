/**
 * docs/conditions.md, made from the table in src/worker/condition.ts. `npm run pages` writes it;
 * scripts/tidy.ts compares.
 */
import { writeFileSync } from 'node:fs';
import { CONDITION_ORDER, CONDITIONS } from '../src/worker/condition.ts';

export const CONDITIONS_PAGE = 'docs/conditions.md';

const HEAD = `# What \`godwit why\` says

*Made from \`src/worker/condition.ts\` by \`npm run pages\`; \`npm run check\` says when it is out of date.*

A condition is something that a worker, a machine, a volume or a run waits for, or suffers from. It has a code, what it holds up, a message, since when it is so (wall clock of the worker, in
milliseconds; null: not known), who can clear it, and a command for the next thing to do. Each part of a worker tells those that it knows (\`conditions\` in
\`src/worker/*-parts.ts\`); nobody knows all. They come in this order, so that what is true whatever else is said comes first, and what follows from it later:
${CONDITION_ORDER.join(', ')}.

| code | what is the matter |
|---|---|`;

export function conditionsPage(): string {
  const rows = Object.entries(CONDITIONS).map(([code, what]) => `| \`${code}\` | ${what} |`);
  return `${[HEAD, ...rows].join('\n')}\n`;
}

if (import.meta.filename === process.argv[1]) writeFileSync(CONDITIONS_PAGE, conditionsPage());
