import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';
import { until } from '../../test/support/patience.ts';
import { mainProcess, processTree } from './process-tree.ts';

test('the tree has what descends from init, and its oldest child is the command', async (t) => {
  // "init" is a shell with a child, which has a child; a process of ours is in the same list and not below
  // it.
  const init = spawn('sh', ['-c', 'sh -c "sleep 1000 & wait" & wait']);
  const other = spawn('sleep', ['1000']);
  t.after(() => {
    for (const { pid } of processTree(init.pid!, children())) process.kill(pid, 'SIGKILL');
    for (const child of [init, other]) child.kill('SIGKILL');
  });
  const children = () => [init.pid!, other.pid!, ...childrenOf(init.pid!)];
  const tree = await until('both to run', () => processTree(init.pid!, children()), {
    is: (each) => each.length === 2,
  });
  assert.ok(tree.every(({ alive }) => alive));
  const main = mainProcess(init.pid!, tree)!;
  assert.deepEqual(
    tree.map(({ parentPid }) => parentPid).sort((a, b) => a - b),
    [init.pid!, main.pid].sort((a, b) => a - b),
  );
  assert.equal(mainProcess(init.pid!, []), null);
  assert.deepEqual(processTree(init.pid!, [other.pid!, 2 ** 30]), []);
});

/** All below it, by the kernel's own word. */
function childrenOf(pid: number): number[] {
  const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8');
  return text
    .split(' ')
    .filter(Boolean)
    .map(Number)
    .flatMap((child) => [child, ...childrenOf(child)]);
}
