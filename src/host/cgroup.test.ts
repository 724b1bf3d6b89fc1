import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { test } from 'node:test';
import { patient } from '../../test/support/patience.ts';
import { requires } from '../../test/support/requires.ts';
import { mayLack } from '../../test/support/skips.ts';
import { systemClock } from '../base/clock.ts';
import { isGodwitError } from '../base/errors.ts';
import { Cgroup, cgroupLayout, parseOutOfMemoryKills, planCgroup, readCgroupLayout } from './cgroup.ts';

const V1 = `25 20 0:21 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
26 20 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct
27 20 0:23 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
28 20 0:24 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
29 20 0:25 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw`;
const V2 = '25 20 0:21 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate';

test('the layout of a version 1 host has a folder a controller, and the unified hierarchy for killing', () => {
  assert.deepEqual(cgroupLayout(V1, 'hugetlb'), {
    version: 1,
    memory: '/sys/fs/cgroup/memory',
    cpu: '/sys/fs/cgroup/cpu,cpuacct',
    pids: '/sys/fs/cgroup/pids',
    freezer: '/sys/fs/cgroup/freezer',
    unified: '/sys/fs/cgroup/unified',
  });
});

test('on a version 2 host the controllers are those that the root has', () => {
  const layout = cgroupLayout(V2, 'cpuset cpu io memory\n');
  assert.equal(layout.version, 2);
  assert.equal(layout.memory, '/sys/fs/cgroup');
  assert.equal(layout.pids, null);
  assert.deepEqual(planCgroup(layout, 'x', { processesMax: 5 }).missing, ['pids']);
});

test('limits become the files of each version; absent ones are lifted', () => {
  const limits = { memoryBytes: 64 * 1024 * 1024, cpus: 0.5, processesMax: 10 };
  const values = (mountinfo: string, wanted: object) =>
    planCgroup(cgroupLayout(mountinfo, 'memory cpu pids'), 'x', wanted).settings.map(({ file, value }) => [
      file.replace('/sys/fs/cgroup', ''),
      value,
    ]);
  assert.deepEqual(values(V2, limits), [
    ['/godwit/x/memory.max', '67108864'],
    ['/godwit/x/cpu.max', '50000 100000'],
    ['/godwit/x/pids.max', '11'],
  ]);
  assert.deepEqual(values(V1, limits), [
    ['/memory/godwit/x/memory.limit_in_bytes', '67108864'],
    ['/cpu,cpuacct/godwit/x/cpu.cfs_quota_us', '50000'],
    ['/pids/godwit/x/pids.max', '11'],
  ]);
  assert.deepEqual(
    values(V2, {}).map(([, value]) => value),
    ['max', 'max 100000', 'max'],
  );
  assert.deepEqual(
    values(V1, {}).map(([, value]) => value),
    ['-1', '-1', 'max'],
  );
});

test('a host without any hierarchy refuses with a typed error', async () => {
  const cgroup = new Cgroup('x', { layout: cgroupLayout('', ''), clock: systemClock });
  await assert.rejects(cgroup.create({}), (error) => isGodwitError(error, 'MACHINE_CGROUP_MISSING'));
});

test('kills of the OOM killer are read from both versions', () => {
  assert.equal(parseOutOfMemoryKills('low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n'), 2);
  assert.equal(parseOutOfMemoryKills('oom_kill_disable 0\nunder_oom 0\noom_kill 7\n'), 7);
  assert.equal(parseOutOfMemoryKills('oom_kill_disable 0\n'), 0);
});

for (const variant of ['as the host has it', 'with the freezer only'] as const) {
  const host = readCgroupLayout();
  const layout = variant === 'as the host has it' ? host : { ...host, unified: null };
  const skip =
    requires('root') || mayLack('freezer', variant === 'as the host has it' || host.freezer !== null);
  test(`kills all of a forking tree and goes away (${variant})`, { skip }, async (t) => {
    const cgroup = new Cgroup(`test-${process.pid}`, { layout, clock: systemClock });
    await cgroup.create({ processesMax: 30 });
    t.after(async () => {
      await cgroup.killAll(patient(10_000));
      await cgroup.remove();
    });
    const join = cgroup.procsFiles.map((file) => `echo 0 > ${file}`).join('; ');
    // Forks without end: a loop that kills one after the other would not catch up.
    const script = `${join}; trap '' TERM; echo in; while :; do (sleep 100 &) 2>/dev/null; (sleep 0.01 &) 2>/dev/null; done`;
    const child = spawn('sh', ['-c', script], { stdio: ['ignore', 'pipe', 'ignore'] });
    const ended = once(child, 'exit');
    await once(child.stdout, 'data');
    assert.ok(cgroup.processes().includes(child.pid!));
    await cgroup.killAll(patient(10_000));
    await ended;
    assert.deepEqual(cgroup.processes(), []);
    assert.equal(existsSync(cgroup.folders[0]!), true);
    await cgroup.remove();
    await cgroup.remove();
    for (const folder of cgroup.folders) assert.equal(existsSync(folder), false);
  });
}

test('creating again changes the limits', { skip: requires('root') }, async (t) => {
  const cgroup = new Cgroup(`test-again-${process.pid}`, { layout: readCgroupLayout(), clock: systemClock });
  t.after(() => cgroup.remove());
  await cgroup.create({ processesMax: 5 });
  const file = planCgroup(readCgroupLayout(), cgroup.name, {}).settings.find(
    ({ limit }) => limit === 'processesMax',
  )!;
  assert.equal(readFileSync(file.file, 'utf8').trim(), '6');
  await cgroup.create({});
  assert.equal(readFileSync(file.file, 'utf8').trim(), 'max');
});
