import assert from 'node:assert/strict';
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { truncateSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { inPatience, leisurely, NotWorthWaiting, NotYet, until } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import {
  digestFiles,
  killServer,
  LAB_NEEDS,
  moveVolume,
  tool,
  VolumeLab,
  writeFiles,
} from '../support/volume-lab.ts';

const MIB = 2 ** 20;
const skip = requires(...LAB_NEEDS);
const ledgerPath = fileURLToPath(new URL('../support/ledger-writer.ts', import.meta.url));

/** A process that appends numbered lines, each fsynced before it is told. */
class Ledger {
  readonly path: string;
  readonly #child: ChildProcess;
  #output = '';

  constructor(lab: VolumeLab, path: string) {
    this.path = path;
    this.#child = spawn(process.execPath, [ledgerPath, path], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#child.stdout!.on('data', (chunk: Buffer) => {
      this.#output += chunk.toString('latin1');
    });
    lab.onClose(() => this.stop());
  }

  /** Lines that were told to be durable. */
  get acknowledged(): number {
    return this.#output.split('\n').length - 1;
  }

  async reach(count: number): Promise<void> {
    await until(`line ${count}`, () => {
      if (this.acknowledged >= count) return true;
      if (this.#child.exitCode !== null) throw new NotWorthWaiting('the writer does not go on');
      return new NotYet(`${this.acknowledged} are acknowledged`);
    });
  }

  async stop(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const exited = once(this.#child, 'exit');
    this.#child.stdin!.end();
    await inPatience('the writer to end', exited, { patienceMs: 20_000 }).catch((error: unknown) => {
      this.#child.kill('SIGKILL');
      throw error;
    });
  }

  /** The numbers of the file are 1 to at least the last one that was told. */
  async verify(path: string): Promise<void> {
    const lines = (await tool('cat', path)).split('\n').slice(0, -1);
    assert.ok(
      lines.length >= this.acknowledged,
      `${lines.length} lines, ${this.acknowledged} were acknowledged`,
    );
    lines.forEach((line, index) => void assert.equal(Number(line), index + 1));
  }
}

test('the target server dies again and again while it hydrates and the guest writes: nothing is lost', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  let written = new Map<string, string>();
  const { target } = await moveVolume(lab, {
    lengthBytes: 512 * MIB,
    paused: true,
    fill: async (dir) => {
      written = writeFiles(dir, 'source', 16, 4 * MIB);
    },
  });
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: leisurely(4 * MIB) });
  let dir = await target.mount();
  const ledger = new Ledger(lab, join(dir, 'ledger'));
  for (let kill = 1; kill <= 4; kill++) {
    await ledger.reach(ledger.acknowledged + 20);
    await target.killServer();
  }
  await ledger.reach(ledger.acknowledged + 20);
  await ledger.stop();
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('hydrated', (hydration) => hydration.state === 'complete');
  await target.server.call('finish');
  dir = await target.remount();
  await ledger.verify(join(dir, 'ledger'));
  const found = await digestFiles(dir);
  found.delete('ledger');
  assert.deepEqual(found, written);
  await target.unmount();
  await tool('e2fsck', '-f', '-n', target.loop);
});

test('the export server dies while the clone hydrates: the next one takes its port and the clone goes on', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  let written = new Map<string, string>();
  const { source, target } = await moveVolume(lab, {
    lengthBytes: 512 * MIB,
    paused: true,
    fill: async (dir) => {
      written = writeFiles(dir, 'source', 16, 4 * MIB);
    },
  });
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: leisurely(4 * MIB) });
  const dir = await target.mount();
  const ledger = new Ledger(lab, join(dir, 'ledger'));
  for (let kill = 1; kill <= 3; kill++) {
    await killServer(source.server);
    const before = await target.hydration();
    assert.notEqual(before.state, 'complete');
    await ledger.reach(ledger.acknowledged + 20);
    await target.until('more blocks', (now) => now.blocksPresent > before.blocksPresent + 256);
  }
  assert.equal(source.server.state.restarts, 3);
  await ledger.stop();
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  const whole = await target.until('hydrated', (hydration) => hydration.state === 'complete');
  assert.equal(whole.blocksFetchedTwice, 0);
  await target.server.call('finish');
  const mounted = await target.remount();
  await ledger.verify(join(mounted, 'ledger'));
  const found = await digestFiles(mounted);
  found.delete('ledger');
  assert.deepEqual(found, written);
});

test('the source is away when the target server starts again: what is local is served, the rest waits', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  let written = new Map<string, string>();
  const { source, target } = await moveVolume(lab, {
    lengthBytes: 256 * MIB,
    paused: true,
    fill: async (dir) => {
      written = writeFiles(dir, 'source', 8, MIB);
    },
  });
  const dir = await target.mount();
  const ledger = new Ledger(lab, join(dir, 'ledger'));
  await ledger.reach(20);
  const exportPid = source.server.state.serverPid!;
  process.kill(exportPid, 'SIGSTOP');
  try {
    await target.killServer();
    await ledger.reach(ledger.acknowledged + 20);
    const reading = digestFiles(dir);
    await target.until('lost', (hydration) => hydration.state === 'source-lost');
    process.kill(exportPid, 'SIGCONT');
    const found = await reading;
    found.delete('ledger');
    assert.deepEqual(found, written);
  } finally {
    process.kill(exportPid, 'SIGCONT');
  }
  await target.until('back', (hydration) => hydration.state === 'paused');
});

test('only a server of the record’s generation opens for writing, and only one server', {
  skip,
}, async (t) => {
  const lab = new VolumeLab(t);
  const store = await lab.store('source');
  const made = await store.create({ name: 'data', lengthBytes: 64 * MIB, filesystem: 'ext4' });
  const fenced = { code: 'VOLUME_FENCED' };
  for (const generation of [2, 3]) {
    await assert.rejects(lab.attach(store, { ...made, generation }, { access: 'writable' }), fenced);
  }
  await assert.rejects(
    lab.attach(store, { ...made, id: 'v_other' }, { access: 'writable', volumeDir: store.folder(made.id) }),
    fenced,
  );
  const first = await lab.attach(store, made, { access: 'writable' });
  await assert.rejects(lab.attach(store, made, { access: 'writable' }), { code: 'VOLUME_LOCKED' });
  await assert.rejects(store.destroy(made.id), { code: 'VOLUME_ATTACHED' });
  await assert.rejects(lab.export(store, made.id, 'readonly'), { code: /VOLUME_(LOCKED|FENCED)/ });

  const dir = await first.mount();
  await tool('dd', 'if=/dev/urandom', `of=${join(dir, 'file')}`, 'bs=1M', 'count=8', 'conv=fsync');
  await first.unmount();
  await store.apply(made.id, { kind: 'seal', generation: 1 });
  await first.server.call('seal');
  await first.server.call('seal');
  const writing = tool('dd', 'if=/dev/zero', `of=${first.loop}`, 'bs=4096', 'count=1', 'oflag=direct');
  await assert.rejects(writing, 'a sealed volume takes no write');
  await assert.rejects(first.server.call('activate', { access: 'writable' }), fenced);
  await first.killServer();
  assert.equal((await first.status()).access, 'readonly', 'a server that starts again stays sealed');
  await assert.rejects(lab.attach(store, made, { access: 'writable' }), fenced);
  await store.apply(made.id, { kind: 'unseal', generation: 1 });
  await assert.rejects(lab.attach(store, made, { access: 'writable' }), fenced);
  const again = await lab.attach(store, await store.get(made.id), { access: 'writable' });
  await again.mount();
  await again.unmount();
  await tool('e2fsck', '-f', '-n', again.loop);
});

test('an initiator that finds another generation behind the address refuses it', { skip }, async (t) => {
  const lab = new VolumeLab(t);
  const sourceStore = await lab.store('source');
  const targetStore = await lab.store('target');
  const made = await sourceStore.create({ name: 'data', lengthBytes: 64 * MIB, filesystem: 'ext4' });
  const source = await lab.export(sourceStore, made.id, 'standby');
  const incoming = await targetStore.createIncoming({ ...made, generation: 6 });
  await assert.rejects(lab.attach(targetStore, incoming, { access: 'standby', source: source.source }), {
    code: 'ISCSI_TARGET_CHANGED',
  });
  const wrongSecret = { ...source.source, chapSecret: 'not the secret at all' };
  const right = await targetStore.createIncoming({ ...made, id: 'v_right', generation: 2 });
  await assert.rejects(lab.attach(targetStore, right, { access: 'standby', source: wrongSecret }), {
    code: 'ISCSI_LOGIN_REFUSED',
  });
});

test('a data file cut short is refused by name, for a machine and for a target', { skip }, async (t) => {
  const lab = new VolumeLab(t);
  const store = await lab.store('source');
  const made = await store.create({ name: 'data', lengthBytes: 64 * MIB, filesystem: 'ext4' });
  const dataPath = join(store.folder(made.id), 'data.raw');
  truncateSync(dataPath, 32 * MIB);
  await assert.rejects(lab.attach(store, made, { access: 'writable' }), { code: 'BLOCK_SHORT_FILE' });
  await assert.rejects(lab.export(store, made.id, 'standby'), { code: 'BLOCK_SHORT_FILE' });
});
