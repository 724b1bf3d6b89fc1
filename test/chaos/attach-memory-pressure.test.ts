import assert from 'node:assert/strict';
import { existsSync, mkdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { runTool } from '../../src/attach/tool.ts';
import { attachedVolume } from '../support/attached-volume.ts';
import { requires } from '../support/requires.ts';

const MiB = 1024 * 1024;
const LIMIT_BYTES = 64 * MiB;
const WRITTEN_MIB = 800;

/** Folder of a memory controller in which a group can be made, and the name of its limit: version 1, or 2. */
function memoryController(): { dir: string; limit: string } | null {
  if (existsSync('/sys/fs/cgroup/memory/memory.limit_in_bytes')) {
    return { dir: '/sys/fs/cgroup/memory', limit: 'memory.limit_in_bytes' };
  }
  const subtree = '/sys/fs/cgroup/cgroup.subtree_control';
  if (existsSync(subtree) && readFileSync(subtree, 'utf8').includes('memory')) {
    return { dir: '/sys/fs/cgroup', limit: 'memory.max' };
  }
  return null;
}

/** CAP_SYS_RESOURCE, bit 24 (include/uapi/linux/capability.h): root has it, except in some containers. */
function hasSysResource(): boolean {
  const effective = /^CapEff:\s*([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0';
  return (BigInt(`0x${effective}`) & (1n << 24n)) !== 0n;
}

const controller = memoryController();
const skip =
  requires('root', '/dev/fuse', '/dev/loop-control', 'losetup', 'mkfs.ext4', 'dd') ||
  (controller === null && 'no memory controller');

test(`a workload limited to 64 MiB dirties ${WRITTEN_MIB} MiB on its volume and gets through`, {
  skip,
  timeout: 180_000,
}, async (t) => {
  assert.ok(controller !== null);
  const group = join(controller.dir, `gw-test-${process.pid}`);
  mkdirSync(group);
  const volume = await attachedVolume(t, { lengthBytes: 2048 * MiB });
  t.after(async () => {
    // Empty as soon as the last process of it is reaped.
    for (let attempt = 0; attempt < 100; attempt++) {
      try {
        return rmdirSync(group);
      } catch {
        await sleep(50);
      }
    }
  });
  writeFileSync(join(group, controller.limit), String(LIMIT_BYTES));
  const tool = async (program: string, ...argv: string[]) => {
    const result = await runTool(program, argv, { timeoutMs: 120_000 });
    assert.equal(result.code, 0, `${program}: ${result.stderr}`);
    return result.stdout;
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
    assert.equal(readFileSync(`/proc/${serverPid}/oom_score_adj`, 'utf8').trim(), '-1000');
    // PF_MEMALLOC_NOIO, a mark of an I/O flusher (include/linux/sched.h), inherited from the supervisor.
    const flags = Number(readFileSync(`/proc/${serverPid}/stat`, 'utf8').split(') ')[1]?.split(' ')[6]);
    assert.equal(flags & 0x80000, 0x80000);
  }
});
