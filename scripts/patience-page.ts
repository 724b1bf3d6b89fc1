/**
 * docs/patience.md, made from the table in src/base/patience.ts. `npm run pages` writes it; scripts/tidy.ts
 * compares.
 */
import { writeFileSync } from 'node:fs';
import { PATIENCE, PAUSE, type PatienceKind } from '../src/base/patience.ts';

export const PATIENCE_PAGE = 'docs/patience.md';

const KINDS: Readonly<Record<PatienceKind, string>> = {
  measured: 'follows how long earlier answers took; the value is its floor, or where it says so its ceiling',
  silence: 'how long nothing may advance; what advances is waited for, however long it takes',
  named: 'somebody said it: a person, or the configuration of a machine',
  help: 'for what may be left out: a hint, a number of a report',
  limit: 'of the length of something that nobody can see advance; far from what it takes',
};

const HEAD = `# How long godwit waits, and for what

*Made from \`src/base/patience.ts\` by \`npm run pages\`; \`npm run check\` says when it is out of date.*

A host in trouble is a slow host, and it is the one that must be emptied. So nothing is ended for being slow:

- **Before the stop** a step of a move ends when *nothing advances* in it for as long as it may be quiet, or at an *obstacle with a name* that trying again does not
  lift (\`src/migration/obstacle.ts\`), never for its length. Steps hear of what advances: answers of the other worker, of shims and of volume servers, input and output of a
  device, processor time of a process that starts. \`godwit why\` and \`godwit runs show\` say how fast that is.
- **After the stop** nothing ends for being slow or silent. What cannot be done (a device that something else holds) sends the machine back at once, and its undo needs
  nothing of what could not be done. What only takes long is waited for, with a reason in \`godwit why\`; a person can cancel.
- **From the handoff on** the run only goes forward, and waits for as long as it takes.
- **Slow or dead** is told apart by asking. While a call takes long, whoever works on it is asked something cheap; as long as that is answered the call goes on (before the
  stop for \`livesOnly\` at the most when nothing else is seen to advance). How long an answer is waited for follows how long answers took (RFC 6298: smoothed time plus four deviations, doubled with each question that nobody answers), and three in a row must
  stay without one.
- **Time in which the waiting process itself did not run** (SIGSTOP, no processor) counts against nobody: what arrived meanwhile is read first.
- A run that an earlier version began with a deadline for a step goes on with the patience of today.

What a machine is given to stop (\`stop.timeoutMs\`), and its health check (\`timeoutMs\`), is its owner's; then it is killed, or the check has failed.
`;

export function patiencePage(): string {
  const lines = [
    HEAD,
    '## The table',
    '',
    ...Object.entries(KINDS).map(([kind, text]) => `- *${kind}*: ${text}`),
    '',
  ];
  lines.push('| name | kind | value | waits for | at its end | when everything takes ten times as long |');
  lines.push('|---|---|---|---|---|---|');
  for (const [name, { ms, kind, waits, end, slow }] of Object.entries(PATIENCE)) {
    lines.push(`| \`${name}\` | ${kind} | ${duration(ms)} | ${cell(waits)} | ${cell(end)} | ${cell(slow)} |`);
  }
  lines.push(
    '',
    '## Pauses',
    '',
    'Between one look, try or question and the next. Nothing ends with them.',
    '',
  );
  lines.push('| name | value | |', '|---|---|---|');
  for (const [name, { ms, what }] of Object.entries(PAUSE)) {
    lines.push(`| \`${name}\` | ${duration(ms)} | ${cell(what)} |`);
  }
  return `${lines.join('\n')}\n`;
}

function cell(text: string): string {
  return text.replaceAll('|', '\\|');
}

function duration(ms: number): string {
  if (ms < 1_000) return `${ms} ms`;
  if (ms < 120_000) return `${ms / 1_000} s`;
  if (ms < 7_200_000) return `${ms / 60_000} min`;
  return ms < 172_800_000 ? `${ms / 3_600_000} h` : `${ms / 86_400_000} days`;
}

if (import.meta.filename === process.argv[1]) writeFileSync(PATIENCE_PAGE, patiencePage());
