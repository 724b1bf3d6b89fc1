import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { rm } from 'node:fs/promises';
import { FileDevice } from '../src/block/file-device.ts';
import { format } from '../src/crypt/format.ts';
import { readHeader } from '../src/crypt/header-store.ts';
import { DEFAULT_KDF_LIMITS } from '../src/crypt/kdf.ts';
import { unlock } from '../src/crypt/key-slots.ts';
import { openLuks2 } from '../src/crypt/open.ts';
import { Secret } from '../src/crypt/secret.ts';
import { mapperEnvironment } from '../src/host/device-mapper.ts';
import { mustRun, systemTools } from '../src/host/tools.ts';
import { Cryptsetup } from '../test/support/cryptsetup.ts';

/**
 * Program of a guest: `node luks2-program.ts FOLDER`. Volumes of our LUKS2 are read through the kernel's
 * dm-crypt, and volumes of cryptsetup that dm-crypt wrote are read by ours; with sectors of 512 and 4096
 * bytes, and data that begin at 4 and at 16 MiB. Every byte is compared.
 */
const MIB = 2 ** 20;
const PLAIN_BYTES = 8 * MIB;
const MAPPED = 'lab-luks2';
const tools = systemTools({ environment: mapperEnvironment() });
const folder = process.argv[2]!;
const volume = `${folder}/luks2.raw`;
const keyFile = `${folder}/luks2.key`;
const KEY = 'a key of the lab';

const digest = (bytes: Uint8Array) => createHash('sha256').update(bytes).digest('hex');
const cryptsetup = new Cryptsetup(tools);
const mapping = { name: MAPPED, device: volume, keyFile };
const secret = () => Secret.take(Buffer.from(KEY));

for (const sectorBytes of [512, 4096]) {
  for (const dataOffsetBytes of [4 * MIB, 16 * MIB]) {
    const content = randomBytes(PLAIN_BYTES);
    await mustRun(tools, ['sh', '-c', `printf '%s' '${KEY}' > ${keyFile}`]);

    // Ours, read through dm-crypt.
    await rm(volume, { force: true });
    const made = await FileDevice.create(volume, { lengthBytes: dataOffsetBytes + PLAIN_BYTES });
    const { header, volumeKey } = await format(made, secret(), DEFAULT_KDF_LIMITS, {
      sectorBytes,
      dataOffsetBytes,
      kdf: { type: 'pbkdf2', iterations: 1000 },
    });
    const ours = openLuks2(made, header, volumeKey);
    await ours.write(0, content);
    await ours.flush();
    await ours.close();
    await cryptsetup.open(mapping);
    const status = await cryptsetup.status(MAPPED);
    assert.deepEqual(
      [status?.sectorBytes, status?.offsetBytes, status?.lengthBytes],
      [sectorBytes, dataOffsetBytes, PLAIN_BYTES],
    );
    const seen = await mustRun(tools, ['sha256sum', `/dev/mapper/${MAPPED}`]);
    await cryptsetup.close(MAPPED);
    assert.equal(
      seen.split(' ')[0],
      digest(content),
      `ours through dm-crypt, ${sectorBytes}, ${dataOffsetBytes}`,
    );

    // Theirs, written through dm-crypt.
    await rm(volume, { force: true });
    await mustRun(tools, ['truncate', '-s', String(dataOffsetBytes + PLAIN_BYTES), volume]);
    await mustRun(
      tools,
      [
        'cryptsetup',
        ...['luksFormat', '-q', '--type', 'luks2', '--sector-size', String(sectorBytes)],
        ...[
          '--offset',
          String(dataOffsetBytes / 512),
          '--pbkdf',
          'pbkdf2',
          '--pbkdf-force-iterations',
          '1000',
        ],
        ...['--key-file', keyFile, volume],
      ],
      { deadlineMs: 60_000 },
    );
    await cryptsetup.open(mapping);
    const plain = `${folder}/plain`;
    await mustRun(tools, [
      'dd',
      'if=/dev/urandom',
      `of=${plain}`,
      'bs=1M',
      `count=${PLAIN_BYTES / MIB}`,
      'status=none',
    ]);
    await mustRun(tools, [
      'dd',
      `if=${plain}`,
      `of=/dev/mapper/${MAPPED}`,
      'bs=64k',
      'conv=fsync',
      'status=none',
    ]);
    const expected = (await mustRun(tools, ['sha256sum', plain])).split(' ')[0];
    await cryptsetup.close(MAPPED);
    const device = await FileDevice.open({ file: volume, lengthBytes: dataOffsetBytes + PLAIN_BYTES });
    const theirs = await readHeader(device);
    using key = (await unlock(device, theirs, secret(), DEFAULT_KDF_LIMITS)).volumeKey;
    const opened = openLuks2(device, theirs, key);
    const bytes = Buffer.alloc(PLAIN_BYTES);
    await opened.read(0, bytes);
    await opened.close();
    assert.equal(digest(bytes), expected, `theirs here, ${sectorBytes}, ${dataOffsetBytes}`);
    console.log(
      `sectors of ${sectorBytes} bytes, data at ${dataOffsetBytes / MIB} MiB: both ways, byte for byte`,
    );
  }
}
assert.equal(await cryptsetup.status(MAPPED), null);
for (const path of [volume, keyFile, `${folder}/plain`]) await rm(path, { force: true });
