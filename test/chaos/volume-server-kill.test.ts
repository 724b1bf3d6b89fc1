import assert from 'node:assert/strict';
import { existsSync, mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import type { VolumeSupervisor } from '../../src/attach/volume-supervisor.ts';
import type { VolumeServerStatus } from '../../src/opening/status.ts';
import { leisurely, mustEndWell, NotYet, patient, until } from '../support/patience.ts';
import { assertSameContent, moveRawVolume, Running } from '../support/raw-clone.ts';
import { TcpRelay } from '../support/relay.ts';
import { requires } from '../support/requires.ts';
import { mayLack } from '../support/skips.ts';
import { type Attachment, killServer, LAB_NEEDS, tool, VolumeLab } from '../support/volume-lab.ts';

const KILLS = 10;
const MIB = 2 ** 20;
/** Requests that a server has answered before it is killed: fio is at work, and meets each of them. */
const REQUESTS_BEFORE_KILL = 200;
/** Random writes all over a device, then everything is read and checked. */
const FIO = [
  ...['--name=verify', '--ioengine=libaio', '--direct=1', '--rw=randwrite', '--bs=4k', '--iodepth=16'],
  ...['--verify=crc32c', '--verify_state_save=0', '--do_verify=1', '--verify_fatal=1'],
];

/**
 * fio again and again, until the last kill is made: a machine may write all that one run of it writes between
 * two of them.
 */
async function verifiedAllTheTime(words: readonly string[], kills: Promise<void>): Promise<void> {
  let isOver = false;
  const end = () => {
    isOver = true;
  };
  kills.then(end, end);
  for (let seed = 1; !isOver; seed++) {
    assert.match(await mustEndWell('fio', [...words, `--randseed=${seed}`]), /err= 0/);
  }
}

/** Resolves when the server that runs has answered so many requests of the guest. */
async function atWork(server: VolumeSupervisor): Promise<void> {
  const answered = async () => {
    const { guest } = (await server.call('status', {}, patient(20_000))) as VolumeServerStatus;
    const count = guest.reads + guest.writes;
    return count >= REQUESTS_BEFORE_KILL || new NotYet(guest);
  };
  await until(`${REQUESTS_BEFORE_KILL} requests`, answered);
}

async function killTwice({ server }: Attachment): Promise<void> {
  for (let kill = 0; kill < 2; kill++) {
    await atWork(server);
    await killServer(server);
  }
}

test('the volume server of a clone that hydrates is killed ten times under fio --verify, while another reads what is still at the source: no I/O error, every block right', {
  skip: requires(...LAB_NEEDS, 'fio'),
}, async (t) => {
  const lab = new VolumeLab(t);
  const { move, expectedPath } = await moveRawVolume(lab, {
    lengthBytes: 256 * MIB,
    content: { offsetBytes: 0, lengthBytes: 192 * MIB },
    paused: true,
    via: async (source) => {
      const relay = new TcpRelay(source);
      // Far enough away that the reader meets several servers.
      relay.delayMs = 3;
      await relay.listen();
      lab.onClose(() => relay.close());
      return { host: '127.0.0.1', port: relay.port };
    },
  });
  const { target } = move;
  // So slow that it goes on as long as servers are killed, on this machine.
  await target.server.call('hydration', {
    paused: false,
    rateBytesPerSecondMax: leisurely(MIB),
  });
  const writtenBytes = 64 * MIB;
  const readAt = 80 * MIB;
  const reads = ['bs=64k', `skip=${readAt / 65_536}`, `count=${(96 * MIB) / 65_536}`, 'status=none'];
  const readPath = join(lab.dir, 'read');
  const reading = new Running(lab, 'dd', `if=${target.loop}`, `of=${readPath}`, 'iflag=direct', ...reads);
  const pids = new Set<number | null>();
  const killTenTimes = async () => {
    for (let kill = 0; kill < KILLS; kill++) {
      await atWork(target.server);
      if (kill === 0) assert.ok(!reading.over, 'reads of blocks that are not here are under way');
      assert.equal((await target.hydration()).state, 'running', 'and so is the copy');
      pids.add(target.server.state.serverPid);
      await target.killServer();
    }
  };
  const kills = killTenTimes();
  // All of the first blocks: they are here, on their way, or missing.
  await Promise.all([
    kills,
    verifiedAllTheTime([...FIO, `--filename=${target.loop}`, `--size=${writtenBytes}`], kills),
  ]);
  assert.equal(pids.size, KILLS, 'each kill hit another server');
  assert.equal(target.server.state.restarts, KILLS);
  assert.equal(target.server.state.lastError?.values.signal, 'SIGKILL');
  await reading.ended;
  await target.server.call('hydration', { paused: false, rateBytesPerSecondMax: 0 });
  await target.until('hydrated', (hydration) => hydration.state === 'complete');
  await target.server.call('finish');
  assert.equal(target.server.state.restarts, KILLS);
  // Whole: the same without the clone's layer.
  const twice = killTwice(target);
  await Promise.all([twice, verifiedAllTheTime([...FIO, `--filename=${target.loop}`, '--size=16m'], twice)]);

  await tool('dd', `if=${expectedPath}`, `of=${readPath}.expected`, ...reads);
  await tool('cmp', readPath, `${readPath}.expected`);
  // What fio wrote it has checked itself; everything else is as at the source.
  await tool(
    'dd',
    `if=${target.loop}`,
    `of=${expectedPath}`,
    'bs=1M',
    `count=${writtenBytes / MIB}`,
    'conv=notrunc',
  );
  await assertSameContent(target.loop, expectedPath);
});

/** cgroup-v1: the controller's folder. */
const MEMORY_GROUPS = '/sys/fs/cgroup/memory';

test('the volume server is killed for want of the very page that a write of the guest comes to: no I/O error', {
  skip:
    requires(...LAB_NEEDS, 'fio') ||
    mayLack('memory controller', existsSync(`${MEMORY_GROUPS}/memory.limit_in_bytes`)),
}, async (t) => {
  const lab = new VolumeLab(t);
  const group = join(MEMORY_GROUPS, `godwit-test-${process.pid}`);
  mkdirSync(group);
  lab.onClose(() => until('the group to be empty', () => rmdirSync(group) === undefined));
  writeFileSync(join(group, 'memory.limit_in_bytes'), String(4 * MIB));
  const store = await lab.store('worker');
  const record = await store.create({
    name: 'data',
    lengthBytes: 64 * MIB,
    filesystem: 'none',
  });
  // In standby what is read of the guest's writes stays in memory: more than there is.
  const { server, loop } = await lab.attach(store, record, { access: 'standby' });
  const { serverPid, restarts } = server.state;
  writeFileSync(`/proc/${serverPid}/oom_score_adj`, '0');
  writeFileSync(join(group, 'cgroup.procs'), String(serverPid));
  const writing = new Running(
    lab,
    'fio',
    ...['--name=large', `--filename=${loop}`, '--ioengine=libaio', '--direct=1', '--rw=write', '--bs=1m'],
    ...['--iodepth=64', '--verify=crc32c', '--verify_state_save=0', '--do_verify=1', '--verify_fatal=1'],
  );
  await until('another server', () => server.state.restarts > restarts && server.state.ready, {
    state: () => server.state,
  });
  assert.equal(server.state.lastError?.values.signal, 'SIGKILL');
  await server.call('activate', { access: 'writable' });
  await writing.ended;
  assert.equal(server.state.restarts, restarts + 1);
});
