import { parseArgs } from 'node:util';
import { Lab } from './lab.ts';
import { qemuKind } from './qemu-kind.ts';
import { SCENARIOS, SHORT } from './scenarios/index.ts';

/** `npm run lab [-- scenario…]`: runs scenarios one after the other, each in a lab of its own. Exit code 1 when one of them fails. `--all`: also those that take long. `--qemu`: guests of QEMU. */

// PID 1 of its own namespace: no signal ends it by default, and with it ends everything that it started.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));

const { positionals, values } = parseArgs({
  allowPositionals: true,
  options: { all: { type: 'boolean' }, qemu: { type: 'boolean' } },
});
if (values.qemu) Lab.kind = qemuKind;
const names = positionals.length > 0 ? positionals : values.all ? Object.keys(SCENARIOS) : SHORT;
let failures = 0;
for (const name of names) {
  const scenario = SCENARIOS[name];
  if (scenario === undefined) {
    console.error(`there is no scenario ${name}: ${Object.keys(SCENARIOS).join(', ')}`);
    process.exit(2);
  }
  const startedMs = Date.now();
  const seconds = () => ((Date.now() - startedMs) / 1000).toFixed(1).padStart(6);
  try {
    await scenario((line) => console.log(`${seconds()} s  ${name}: ${line}`));
    console.log(`${seconds()} s  ${name}: passed`);
  } catch (error) {
    failures++;
    console.error(`${seconds()} s  ${name}: FAILED`, error);
  }
}
process.exit(failures === 0 ? 0 : 1);
