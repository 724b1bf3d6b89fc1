import assert from 'node:assert/strict';
import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { scratchDir } from '../../test/support/scratch.ts';
import { hiddenFolders } from './options.ts';

test('machines see neither data nor keys, nor where a link to a key leads', (t) => {
  const dir = scratchDir(t);
  for (const folder of ['live', 'archive']) mkdirSync(join(dir, folder));
  writeFileSync(join(dir, 'archive', 'worker-1.key'), '');
  symlinkSync('../archive/worker-1.key', join(dir, 'live', 'worker-1.key'));
  const files = { certFile: '/etc/pki/worker-1.pem', caFile: '/etc/pki/ca.pem' };
  const linked = { ...files, keyFile: join(dir, 'live', 'worker-1.key') };
  const direct = { ...files, keyFile: join(dir, 'archive', 'worker-1.key') };
  const base = { dataDir: '/var/lib/godwit', keys: null };
  assert.deepEqual(hiddenFolders({ ...base, tls: null }), ['/var/lib/godwit']);
  assert.deepEqual(hiddenFolders({ ...base, tls: direct }), ['/var/lib/godwit', join(dir, 'archive')]);
  assert.deepEqual(
    hiddenFolders({ ...base, keys: { kind: 'file', path: '/etc/keys/{volume}.key' }, tls: linked }),
    ['/var/lib/godwit', '/etc/keys', join(dir, 'live'), join(dir, 'archive')],
  );
});
