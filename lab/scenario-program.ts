import { frozenGuests } from './guest.ts';
import { EXIT_FROZEN } from './kind.ts';
import { SCENARIOS } from './scenarios/index.ts';

/**
 * One scenario, started by scripts/lab-scenario as the first process of its namespaces: with it ends
 * everything that it started. Exit code 1: it failed; EXIT_FROZEN: and a guest had frozen.
 */
const [name = ''] = process.argv.slice(2);

// PID 1 of its own namespace: no signal ends it by default.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));
process.stdin.on('end', () => process.exit(130)).resume();

const startedMs = Date.now();
const seconds = () => ((Date.now() - startedMs) / 1000).toFixed(1).padStart(6);
try {
  await SCENARIOS[name]!((line) => console.log(`${seconds()} s  ${name}: ${line}`));
  console.log(`${seconds()} s  ${name}: passed`);
  process.exit(0);
} catch (error) {
  console.error(`${seconds()} s  ${name}: FAILED`, error);
  process.exit(frozenGuests.size > 0 ? EXIT_FROZEN : 1);
}
