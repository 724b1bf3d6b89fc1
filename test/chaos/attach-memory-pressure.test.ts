import assert from 'node:assert/strict';
import { mkdirSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { mustRun, systemTools } from '../../src/host/tools.ts';
import { attachedVolume } from '../support/attached-volume.ts';
import { hasSysResource, isIoFlusher, memoryController, outOfMemoryAdjustment } from '../support/memory.ts';
import { patient, until } from '../support/patience.ts';
import { requires } from '../support/requires.ts';
import { mayLack } from '../support/skips.ts';

const MiB = 1024 * 1024;
const LIMIT_BYTES = 64 * MiB;
const WRITTEN_MIB = 800;

const controller = memoryController();
const skip =
  requires('root', '/dev/fuse', '/dev/loop-control', 'losetup', 'mkfs.ext4', 'dd') ||
  mayLack('memory controller', controller !== null);

test(`a workload limited to 64 MiB dirties ${WRITTEN_MIB} MiB on its volume and gets through`, {
  skip,
}, async (t) => {
  assert.ok(controller !== null);
  const group = join(controller.dir, `gw-test-${process.pid}`);
  mkdirSync(group);
  const volume = await attachedVolume(t, { lengthBytes: 2048 * MiB });
  t.after(async () => {
    await until('its last process to be reaped', () => {
      rmdirSync(group);
      return true;
    });
  });
  writeFileSync(join(group, controller.limit), String(LIMIT_BYTES));
  const tool = async (program: string, ...argv: string[]) => {
    return (await mustRun(systemTools(), [program, ...argv], { deadlineMs: patient(120_000) })).trim();
  };
  await tool('mkfs.ext4', '-q', '-b', '4096', volume.loop);
  await tool('mount', volume.loop, volume.mountPoint);
  const file = join(volume.mountPoint, 'file');
  const inGroup = (script: string) => tool('sh', '-ec', `echo $$ > ${group}/cgroup.procs; ${script}`);
  const written = await inGroup(
    `seq 1 200000000 | head -c ${WRITTEN_MIB}M | tee ${file} | cksum; sync -f ${file}`,
  );
  await tool('umount', volume.mountPoint);
  await tool('mount', volume.loop, volume.mountPoint);
  const readBack = await inGroup(`cksum < ${file}`);
  assert.equal(readBack, written);
  const { restarts, serverPid, protection } = volume.supervisor.state;
  assert.equal(restarts, 0);
  if (hasSysResource()) {
    assert.deepEqual(protection, { ioFlusher: true, outOfMemoryKiller: true });
    assert.equal(outOfMemoryAdjustment(serverPid!), -1000);
    assert.ok(isIoFlusher(serverPid!), 'inherited from the supervisor');
  }
});
