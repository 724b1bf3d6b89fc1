import assert from 'node:assert/strict';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { parseMountTable } from '../host/mount-table.ts';
import { requireLastingData } from './data-folder.ts';

test('a filesystem on which fsync does nothing is no place for the data of a worker; memory is one that is told', (t) => {
  const dir = scratchDir(t);
  const data = join(dir, 'not', 'there', 'yet');
  const on = (filesystem: string, options: string) =>
    requireLastingData(
      data,
      parseMountTable(
        [
          `1 0 8:1 / / rw - ext4 /dev/sda1 rw`,
          `2 1 0:41 / ${dir} rw,relatime - ${filesystem} none ${options}`,
        ].join('\n'),
      ),
    );
  for (const refused of [
    'rw,lowerdir=/l,upperdir=/u,workdir=/w,uuid=on,fsync=volatile',
    'rw,lowerdir=/l,upperdir=/u,workdir=/w,volatile',
    'rw,volatile,uuid=on',
  ])
    assert.throws(() => on('overlay', refused), {
      code: 'WORKER_DATA_NOT_KEPT',
      message: /fsync does nothing/,
    });
  assert.throws(() => on('ramfs', 'rw'), { code: 'WORKER_DATA_NOT_KEPT' });
  assert.equal(on('overlay', 'rw,lowerdir=/volatile,upperdir=/u,workdir=/w'), null);
  for (const filesystem of ['ext4', 'xfs', 'btrfs']) assert.equal(on(filesystem, 'rw'), null);
  assert.match(on('tmpfs', 'rw,size=1g')!, /gone when this host is started anew/);
});
