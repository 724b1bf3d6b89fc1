import assert from 'node:assert/strict';
import { test } from 'node:test';
import { portProblems } from './ports.ts';

const GLOBALS = {
  'a timer of its own': [
    'setTimeout(end, 5);',
    'AbortSignal.timeout(ms)',
    "import { x } from 'node:timers/promises';",
  ],
  'a clock of its own': ['since(Date.now())', 'clock: systemClock,', 'performance.now()'],
  'randomness of its own': ['Math.random()', 'randomUUID()', 'random = systemRandom'],
  'processes of its own': ["import { spawn } from 'node:child_process';"],
  sockets: ["import { BlockList, connect } from 'node:net';"],
  'files of its own': ["import { rm } from 'node:fs/promises';"],
};

test('what the control path takes for itself is found, and nothing at an edge or elsewhere', () => {
  for (const [what, texts] of Object.entries(GLOBALS)) {
    for (const text of texts) {
      const [problem] = portProblems([{ path: 'src/migration/drain.ts', text }]);
      assert.match(problem ?? '', new RegExp(`^src/migration/drain.ts: ${what}`), text);
      for (const path of ['src/worker/main.ts', 'src/volume/store.ts', 'src/migration/drain.test.ts'])
        assert.deepEqual(portProblems([{ path, text }]), [], path);
    }
  }
  const harmless = "clock.timer(5, end); import { isIPv4 } from 'node:net'; new Date(atMs)";
  assert.deepEqual(portProblems([{ path: 'src/machine/manager.ts', text: harmless }]), []);
});

test('an edge that touches nothing any more is told', () => {
  const [problem] = portProblems([{ path: 'src/worker/ballast.ts', text: '' }]);
  assert.match(problem ?? '', /ballast.ts: is no edge any more/);
});
