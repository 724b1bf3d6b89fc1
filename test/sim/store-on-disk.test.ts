import './system-calls.ts';
import assert from 'node:assert/strict';
import { basename, join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { toWireError } from '../../src/base/errors.ts';
import { silentLogger } from '../../src/base/logger.ts';
import { seededRandom } from '../../src/base/random.ts';
import { VolumeStore } from '../../src/volume/index.ts';
import { scratchDir } from '../support/scratch.ts';
import { Disk } from './disk.ts';
import { Process, running, Simulation } from './simulation.ts';

const VOLUME = { id: 'v_abc', name: 'data', lengthBytes: 2 ** 20, filesystem: 'none' as const };
/** What a power cut takes is drawn. */
const SEEDS = 12;

/** A store on a disk whose fsync of a folder fails, once, after something in it was given its name. */
async function bench(t: TestContext, seed: number) {
  const simulation = new Simulation(seed);
  const root = join(scratchDir(t), 'w1');
  const disk = new Disk(root, simulation);
  t.after(() => {
    disk.close();
    simulation.close();
  });
  const process = new Process('w1', { host: 'w1', sinceMs: 0, wallOffsetMs: 0 });
  const ask = async <T>(work: () => Promise<T>): Promise<T> => {
    let isOver = false;
    const asked = running.run(process, work);
    const end = () => {
      isOver = true;
    };
    asked.then(end, end);
    await simulation.run(() => isOver, simulation.nowMs + 60_000);
    return asked;
  };
  const open = () =>
    ask(() =>
      VolumeStore.open(root, {
        clock: simulation.clockOf(process),
        random: seededRandom(seed),
        logger: silentLogger,
        allocate: () => disk.allocate(),
      }),
    );
  const store = await open();
  const failOnce = (named: string) => {
    const rename = disk.rename.bind(disk);
    disk.rename = (from, to) => {
      rename(from, to);
      if (basename(to) !== named) return;
      disk.rename = rename;
      disk.failsNext = 1;
    };
  };
  return { ask, disk, failOnce, open, store };
}

const isFailed = (error: unknown) => toWireError(error).code === 'DISK_FAILED';

test('a change that failed when its name was not durable yet is durable when it is said to be so', async (t) => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const { ask, disk, failOnce, open, store } = await bench(t, seed);
    await ask(() => store.createIncoming({ ...VOLUME, generation: 4 }));
    failOnce('volume.json');
    const activate = () => ask(() => store.apply(VOLUME.id, { kind: 'activate', generation: 4 }));
    await assert.rejects(activate(), isFailed);
    assert.equal((await activate()).state, 'clone');
    disk.cut();
    const after = await open();
    assert.equal((await ask(() => after.get(VOLUME.id))).state, 'clone', `seed ${seed}`);
  }
});

test('a volume that was made when its name was not durable yet is there when it is said to be there', async (t) => {
  for (let seed = 1; seed <= SEEDS; seed++) {
    const { ask, disk, failOnce, open, store } = await bench(t, seed);
    failOnce(VOLUME.id);
    const make = () => ask(() => store.createIncoming({ ...VOLUME, generation: 4 }));
    await assert.rejects(make(), isFailed);
    assert.equal((await make()).state, 'incoming');
    disk.cut();
    const after = await open();
    assert.equal((await ask(() => after.get(VOLUME.id))).generation, 4, `seed ${seed}`);
  }
});
