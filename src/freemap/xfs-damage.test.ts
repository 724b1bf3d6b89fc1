import assert from 'node:assert/strict';
import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import test from 'node:test';
import { FilesystemImage } from '../../test/support/filesystem-image.ts';
import { requires } from '../../test/support/requires.ts';
import { FileDevice } from '../block/file-device.ts';
import { FreeMapReader } from './free-map-reader.ts';

test('headers of allocation groups that do not fit their checksums are named before the stop, and nothing else is', {
  skip: requires('mkfs.xfs'),
}, async (t) => {
  const image = await FilesystemImage.make(t, 320 * 2 ** 20, ['mkfs.xfs', '-q']);
  const fd = openSync(image.path, 'r+');
  t.after(() => closeSync(fd));
  const superblock = Buffer.alloc(512);
  readSync(fd, superblock, 0, 512, 0);
  const agBytes = superblock.readUInt32BE(84) * superblock.readUInt32BE(4);
  const sectorBytes = superblock.readUInt16BE(102);
  const device = await FileDevice.open({ file: image.path, lengthBytes: image.lengthBytes });
  t.after(() => device.close());
  const damage = async () => (await new FreeMapReader(device, 'xfs').prime())?.message ?? null;
  const flip = (offsetBytes: number) => {
    const byte = Buffer.alloc(1);
    readSync(fd, byte, 0, 1, offsetBytes);
    byte[0]! ^= 0xff;
    writeSync(fd, byte, 0, 1, offsetBytes);
  };
  assert.equal(await damage(), null);
  const places = [
    { at: agBytes + sectorBytes + 52, says: /free space header of allocation group 1 does not fit/ },
    { at: 3 * agBytes + 2 * sectorBytes, says: /inode header of allocation group 3 does not fit/ },
    // Whoever has it mounted writes it anew.
    { at: 8, says: /^null$/ },
  ];
  for (const { at, says } of places) {
    flip(at);
    assert.match(String(await damage()), says);
    flip(at);
  }
});
