import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemClock } from '../../src/base/clock.ts';
import { isGodwitError } from '../../src/base/errors.ts';
import { ShimClient } from '../../src/shim/client.ts';
import { Fleet, fleetNeeds } from '../support/fleet.ts';
import { asking, HOSTILE, type Operation, tryHostileNames } from '../support/hostile-names.ts';

test('a name that leads elsewhere is refused at the edge, at every parameter of every route, in bodies too', {
  skip: fleetNeeds,
}, async (t) => {
  const fleet = await Fleet.start(t, ['a']);
  const a = fleet.worker('a');
  assert.equal((await fleet.run('machine', 'run', '--name', 'one', '--', 'sleep', 'infinity')).exitCode, 0);
  const machine = await a.client.showMachine('one');
  // What a path that leaves its folder would find beside it.
  for (const beside of ['x', 'b']) {
    mkdirSync(join(a.dataDir, beside));
    writeFileSync(join(a.dataDir, beside, 'canary'), 'alive');
  }
  const folders = () =>
    ['.', 'machines', 'volumes', 'run'].map((name) => readdirSync(join(a.dataDir, name)).sort());
  const before = folders();

  const document = (await (await fetch(new URL('/openapi.json', a.url))).json()) as {
    paths: Record<string, Record<string, Operation>>;
  };
  const tried = await tryHostileNames(document.paths, asking(a.url, fleet.token));
  assert.ok(tried.path > 20 && tried.body > 10, JSON.stringify(tried));

  // And who is past the API: a shim is asked by its socket.
  const shim = await ShimClient.connect(join(a.dataDir, 'run', machine.id), { clock: systemClock });
  t.after(() => shim.close());
  for (const text of HOSTILE) {
    const asked = [
      shim.call('volume.open', { spec: { volumeId: text } as never }),
      shim.call('workload.start', { machineId: text, name: 'one', config: machine.config }),
      shim.call('workload.prepare', { machineId: text, name: 'one', config: machine.config }),
    ];
    for (const reply of asked) await assert.rejects(reply, (error) => isGodwitError(error, 'RPC_BAD_NAME'));
  }

  assert.deepEqual(folders(), before);
  for (const beside of ['x', 'b']) assert.ok(existsSync(join(a.dataDir, beside, 'canary')), beside);
  assert.equal((await a.client.showMachine('one')).pid, machine.pid);
});
