import assert from 'node:assert/strict';
import { Lab } from '../lab.ts';
import { cliFrom, LabWorker } from '../lab-worker.ts';
import { mustRun } from '../member.ts';
import { DATA_DIR, prepareGuest } from '../prepare.ts';
import { until } from './move.ts';

/**
 * The lab itself: guests boot, have device-mapper's targets, see one another, are parted and joined; a worker
 * of this repository runs in one.
 */
export async function guests(say: (line: string) => void): Promise<void> {
  const bootedMs = Date.now();
  const lab = await Lab.start({
    guests: [
      { name: 'guest-1', diskBytes: [2 ** 30] },
      { name: 'guest-2', diskBytes: [2 ** 30] },
    ],
  });
  try {
    say(`two guests in ${Date.now() - bootedMs} ms`);
    const one = lab.guest('guest-1');
    const two = lab.guest('guest-2');
    await Promise.all([prepareGuest(one), prepareGuest(two)]);
    const targets = await mustRun(one, ['dmsetup', 'targets']);
    for (const name of ['linear', 'clone', 'crypt']) assert.match(targets, new RegExp(`^${name} `, 'm'));

    const worker = new LabWorker(one, { dataDir: DATA_DIR, peers: [] });
    await worker.start();
    const answer = await cliFrom(two, worker, '--json', 'top', '--once');
    assert.match(answer, /guest-1/);
    say('a worker in guest-1 answers guest-2');

    const reaches = () => two.reaches(one.address, 4680);
    assert.ok(await reaches());
    await lab.network.cut();
    assert.ok(!(await reaches()), 'a cut network');
    await lab.network.heal();
    await until('a healed network', reaches);
    say('cut and healed');

    await mustRun(two, ['sh', '-c', `echo kept > ${DATA_DIR}/kept; sync -f ${DATA_DIR}/kept`]);
    await two.kill9();
    await two.boot();
    await prepareGuest(two);
    assert.equal((await two.readFile(`${DATA_DIR}/kept`)).trim(), 'kept');
    say('guest-2 was killed and booted again with its disk');
  } finally {
    await lab.close();
  }
}
