import assert from 'node:assert/strict';
import { existsSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { requires } from '../support/requires.ts';
import { digestFiles, LAB_NEEDS, moveVolume, tool, VolumeLab, writeFiles } from '../support/volume-lab.ts';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

test('a volume moves under a mounted filesystem: read, write, hydrate, finish', {
  skip: requires(...LAB_NEEDS),
}, async (t) => {
  const lab = new VolumeLab(t);
  let written = new Map<string, string>();
  const move = await moveVolume(lab, {
    lengthBytes: GIB,
    paused: true,
    fill: async (dir) => {
      written = writeFiles(dir, 'source', 24, MIB);
    },
  });
  const { target, targetStore, sourceStore, id } = move;
  let dir = await target.mount();

  assert.deepEqual(await digestFiles(dir), written, 'every file reads through the clone');
  const paused = await target.hydration();
  assert.equal(paused.state, 'paused');
  assert.ok(paused.exposedBytes > 0);

  const scratch = lab.scratch();
  for (const [name, digest] of writeFiles(scratch, 'target', 8, MIB)) written.set(name, digest);
  await tool('cp', '-r', `${scratch}/.`, dir);
  await tool('rm', join(dir, 'source-3'));
  written.delete('source-3');
  await tool('sync', '-f', dir);

  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  const whole = await target.until('hydrated', (hydration) => hydration.state === 'complete');
  assert.equal(whole.exposedBytes, 0);
  assert.equal(whole.blocksFetchedTwice, 0);
  const usedBytes = await sourceStore.usedBytes(id);
  assert.ok(
    whole.wireBytes < 1.5 * usedBytes,
    `${whole.wireBytes} bytes over the wire for ${usedBytes} used`,
  );
  // Told when all of it is durable, a moment after it is here.
  const told = () => target.events.filter(([event]) => event === 'hydrated').length;
  await target.until('the event', () => told() > 0);
  assert.equal(told(), 1);

  await target.server.call('finish');
  await target.server.call('finish');
  await targetStore.apply(id, { kind: 'complete', generation: 2 });
  assert.deepEqual(readdirSync(lab.validityDir), [], 'the live bits went with the clone');
  assert.ok(!existsSync(join(targetStore.folder(id), 'clone.meta')));
  const exported = await move.source.server.call('status');
  assert.equal((exported as { export: { sessions: number } }).export.sessions, 0, 'logged out of the source');
  await move.source.server.stop();

  dir = await target.remount();
  assert.deepEqual(await digestFiles(dir), written, 'every file is local');
  await target.killServer();
  dir = await target.remount();
  assert.deepEqual(await digestFiles(dir), written, 'and so it is for the next server');
  await target.unmount();
  await tool('e2fsck', '-f', '-n', target.loop);
});

test('of 100 GiB with a few MiB used only those travel', { skip: requires(...LAB_NEEDS) }, async (t) => {
  const lab = new VolumeLab(t);
  let written = new Map<string, string>();
  const { target, sourceStore, id } = await moveVolume(lab, {
    lengthBytes: 100 * GIB,
    fill: async (dir) => {
      written = writeFiles(dir, 'file', 5, MIB);
    },
  });
  const dir = await target.mount();
  const whole = await target.until('hydrated', (hydration) => hydration.state === 'complete');
  const usedBytes = await sourceStore.usedBytes(id);
  assert.ok(usedBytes < 32 * MIB, `${usedBytes} bytes used`);
  assert.ok(
    whole.wireBytes < 1.5 * usedBytes,
    `${whole.wireBytes} bytes over the wire for ${usedBytes} used`,
  );
  await target.server.call('finish');
  assert.deepEqual(await digestFiles(dir), written);
});

test('in standby nothing is fetched and nothing is written, and reads wait', {
  skip: requires(...LAB_NEEDS),
}, async (t) => {
  const lab = new VolumeLab(t);
  const sourceStore = await lab.store('source');
  const targetStore = await lab.store('target');
  const made = await sourceStore.create({ name: 'data', lengthBytes: 64 * MIB, filesystem: 'ext4' });
  const source = await lab.export(sourceStore, made.id, 'standby');
  const incoming = await targetStore.createIncoming({ ...made, generation: 2 });
  const target = await lab.attach(targetStore, incoming, { access: 'standby', source: source.source });
  const reading = tool('dd', `if=${target.loop}`, 'of=/dev/null', 'bs=4096', 'count=1', 'iflag=direct');
  // The source changes until the handoff, and that must be seen.
  let written = new Map<string, string>();
  await lab.withDataMounted(sourceStore, made.id, async (dir) => {
    written = writeFiles(dir, 'late', 4, MIB);
  });
  const standby = await target.hydration();
  assert.equal(standby.state, 'paused');
  assert.equal(standby.wireBytes, 0);
  assert.equal(standby.blocksPresent, 0);
  assert.equal(await targetStore.usedBytes(made.id), 0);
  const fenced = { code: 'VOLUME_FENCED' };
  await assert.rejects(target.server.call('activate', { access: 'writable' }), fenced);
  await assert.rejects(source.server.call('activate', { access: 'readonly' }), fenced);
  await sourceStore.apply(made.id, { kind: 'seal', generation: 1 });
  await source.server.call('activate', { access: 'readonly' });
  await targetStore.apply(made.id, { kind: 'activate', generation: 2 });
  await target.server.call('activate', { access: 'writable' });
  await reading;
  assert.deepEqual(await digestFiles(await target.mount()), written);
});
