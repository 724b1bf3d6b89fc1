import assert from 'node:assert/strict';
import { createHash, generateKeyPairSync, sign } from 'node:crypto';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { diskReceiptBody, receiptBody, receiptOf } from '../../test/support/receipts.ts';
import { scratchDir } from '../../test/support/scratch.ts';
import { newWorkerKey } from '../../test/support/worker-keys.ts';
import { isGodwitError } from '../base/errors.ts';
import {
  countersign,
  draftReceipt,
  parseReceipt,
  type Receipt,
  verifyReceipt,
  WorkerKey,
} from './envelope.ts';
import type { GuestWrites } from './proof.ts';
import { type ReceiptBody, unexplainedBytes } from './receipt.ts';
import { openWorkerKey } from './worker-key.ts';

const keys = { source: newWorkerKey(), target: newWorkerKey() };
const sound = countersign(draftReceipt(receiptBody('run1', keys), keys.source), keys.target);

function codeOf(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    assert.ok(isGodwitError(error), String(error));
    return error.code;
  }
  return 'accepted';
}

/** Signed by the right keys, whatever it says. */
function signed(change: (body: ReceiptBody) => void): Receipt {
  const body = receiptBody('run1', keys);
  change(body);
  return countersign(draftReceipt(body, keys.source), keys.target);
}

test('a receipt that both workers signed holds, also after a way through a file', () => {
  assert.deepEqual(verifyReceipt(sound), receiptBody('run1', keys));
  const again = parseReceipt(JSON.stringify(sound, null, 2));
  const fingerprints = [keys.target.fingerprint, keys.source.fingerprint];
  assert.equal(verifyReceipt(again, { fingerprints }).moveId, 'run1');
  assert.equal(
    codeOf(() => verifyReceipt(sound, { fingerprints: [keys.source.fingerprint] })),
    'RECEIPT_UNKNOWN_KEY',
  );
});

test('the signature is over the bytes that the DSSE protocol says', () => {
  const payload = Buffer.from(sound.payload, 'base64');
  const type = 'application/vnd.godwit.receipt+json';
  const pae = Buffer.concat([Buffer.from(`DSSEv1 ${type.length} ${type} ${payload.length} `), payload]);
  const { privateKey } = generateKeyPairSync('ed25519');
  const key = new WorkerKey(privateKey.export({ type: 'pkcs8', format: 'pem' }).toString());
  // Ed25519 is deterministic (RFC 8032), so the same bytes have the same signature.
  assert.equal(key.sign(payload).sig, sign(null, pae, privateKey).toString('base64'));
  assert.equal(
    createHash('sha256').update(Buffer.from(key.publicKey, 'base64')).digest('hex'),
    key.fingerprint,
  );
});

test('a changed field, whichever, breaks the signature', () => {
  const body = receiptBody('run1', keys) as unknown as Record<string, unknown>;
  const paths: string[][] = [];
  const walk = (value: unknown, path: string[]) => {
    if (typeof value !== 'object' || value === null) return void paths.push(path);
    for (const [name, inner] of Object.entries(value)) walk(inner, [...path, name]);
  };
  walk(body, []);
  assert.ok(paths.length > 30, 'every field is tried');
  for (const path of paths) {
    const changed = structuredClone(body);
    let place = changed;
    for (const name of path.slice(0, -1)) place = place[name] as Record<string, unknown>;
    const last = path.at(-1)!;
    const value = place[last];
    if (typeof value === 'number') place[last] = value + 1;
    else if (typeof value === 'boolean') place[last] = !value;
    else if (typeof value === 'string')
      place[last] = value.startsWith('0') ? `1${value.slice(1)}` : `0${value.slice(1)}`;
    const forged = { ...sound, payload: Buffer.from(JSON.stringify(changed)).toString('base64') };
    const code = codeOf(() => verifyReceipt(forged));
    assert.match(code, /^RECEIPT_(BAD_SIGNATURE|FIGURES|MALFORMED)$/, path.join('.'));
  }
});

test('every flipped bit of the payload and of the signatures is noticed', () => {
  const payload = Buffer.from(sound.payload, 'base64');
  for (let bit = 0; bit < payload.length * 8; bit += 7) {
    const flipped = Buffer.from(payload);
    flipped[bit >>> 3]! ^= 1 << (bit & 7);
    assert.notEqual(
      codeOf(() => verifyReceipt({ ...sound, payload: flipped.toString('base64') })),
      'accepted',
    );
  }
  for (const [index, signature] of sound.signatures.entries()) {
    const bytes = Buffer.from(signature.sig, 'base64');
    for (let bit = 0; bit < bytes.length * 8; bit += 5) {
      const flipped = Buffer.from(bytes);
      flipped[bit >>> 3]! ^= 1 << (bit & 7);
      const signatures = sound.signatures.map((each, at) =>
        at === index ? { ...each, sig: flipped.toString('base64') } : each,
      );
      assert.equal(
        codeOf(() => verifyReceipt({ ...sound, signatures })),
        'RECEIPT_BAD_SIGNATURE',
      );
    }
  }
});

test('signatures that are missing, swapped, doubled or of one key are refused', () => {
  const [source, target] = sound.signatures;
  for (const signatures of [[], [source!], [target!, source!], [source!, source!]]) {
    assert.equal(
      codeOf(() => verifyReceipt({ ...sound, signatures })),
      'RECEIPT_BAD_SIGNATURE',
    );
  }
  const draft = draftReceipt(receiptBody('run1', keys), keys.source);
  assert.equal(verifyReceipt(draft, { stage: 'draft' }).moveId, 'run1');
  assert.equal(
    codeOf(() => verifyReceipt(draft)),
    'RECEIPT_BAD_SIGNATURE',
  );
  const one = { source: keys.source, target: keys.source };
  const alone = countersign(draftReceipt(receiptBody('run1', one), keys.source), keys.source);
  assert.equal(
    codeOf(() => verifyReceipt(alone)),
    'RECEIPT_BAD_SIGNATURE',
  );
  const stranger = countersign(draftReceipt(receiptBody('run1', keys), newWorkerKey()), keys.target);
  assert.equal(
    codeOf(() => verifyReceipt(stranger)),
    'RECEIPT_BAD_SIGNATURE',
  );
});

test('figures that do not add up are refused, though they are signed', () => {
  const wrong: ((body: ReceiptBody) => void)[] = [
    (body) => body.bytes.total++,
    (body) => body.bytes.fetched--,
    (body) => body.bytes.notFetched++,
    (body) => body.bytes.readBack++,
    (body) => body.bytes.writtenSince++,
    (body) => {
      body.bytes.avoided = body.bytes.notFetched + 1;
    },
    (body) => {
      body.bytes.mendedLeft = body.bytes.mended + 1;
    },
    (body) => {
      body.rangesMended = 0;
    },
    (body) => {
      body.ranges = 0;
    },
    (body) => {
      body.bytes.compared = 0;
      body.bytes.readBack = 0;
      body.bytes.writtenSince = 0;
    },
    (body) => body.generations.opened++,
    (body) => {
      body.target.worker = body.source.worker;
    },
  ];
  for (const change of wrong)
    assert.equal(
      codeOf(() => verifyReceipt(signed(change))),
      'RECEIPT_FIGURES',
      String(change),
    );
});

test('a disk that was compared: its parts make up the volume, and what differs has a reason', () => {
  const request = {
    writes: 1,
    writeBytes: 4096,
    discards: 1,
    discardBytes: 4096,
    sectorBytes: 4096,
  } as const;
  const codeWith = (change: (body: ReceiptBody) => void, guest: GuestWrites | null = request) => {
    const body = diskReceiptBody('run1', keys, guest);
    change(body);
    const receipt = countersign(draftReceipt(body, keys.source), keys.target);
    return codeOf(() => verifyReceipt(receipt));
  };
  assert.equal(
    codeWith(() => {}),
    'accepted',
  );
  assert.equal(
    codeWith(() => {}, null),
    'accepted',
    'not known',
  );
  const wrong: ((body: ReceiptBody) => void)[] = [
    (body) => {
      body.version = 1;
    },
    (body) => {
      delete body.disk;
    },
    (body) => body.disk!.unused++,
    (body) => {
      body.bytes.readBack -= 4096;
      body.bytes.writtenSince += 4096;
    },
    (body) => {
      body.disk!.guest = { ...request, writes: 0, writeBytes: 0 };
    },
    (body) => {
      body.disk!.guest = { ...request, discards: 0, discardBytes: 0 };
    },
  ];
  for (const change of wrong) assert.equal(codeWith(change), 'RECEIPT_FIGURES', String(change));
});

test('what differs is explained by the blocks that requests may have touched, and by no more', () => {
  const nothing = { writes: 0, writeBytes: 0, discards: 0, discardBytes: 0, sectorBytes: 512 } as const;
  const blocks = (changed: number, cleared: number, guest: Partial<GuestWrites>) => {
    const disk = { empty: 0, changed: changed * 4096, cleared: cleared * 4096, unused: 0 };
    return unexplainedBytes({ ...disk, guest: { ...nothing, ...guest } }) / 4096;
  };
  assert.equal(blocks(1, 0, {}), 1);
  assert.equal(blocks(1, 0, { writes: 1, writeBytes: 512 }), 0);
  assert.equal(blocks(2, 0, { writes: 1, writeBytes: 512 }), 1);
  assert.equal(blocks(2, 0, { writes: 1, writeBytes: 1024 }), 0, 'over a border');
  assert.equal(blocks(3, 0, { writes: 1, writeBytes: 4096 }), 1);
  assert.equal(blocks(10, 0, { writes: 1, writeBytes: 8 * 4096 }), 1);
  assert.equal(blocks(9, 0, { writes: 1, writeBytes: 8 * 4096, sectorBytes: 4096 }), 1);
  assert.equal(blocks(1, 0, { discards: 1, discardBytes: 4096 }), 1, 'a discard leaves zeros');
  assert.equal(blocks(1, 2, { discards: 1, discardBytes: 2 * 4096, sectorBytes: 4096 }), 1);
  assert.equal(
    blocks(0, 3, { writes: 1, writeBytes: 4096, discards: 1, discardBytes: 8192, sectorBytes: 4096 }),
    0,
  );
});

test('what is no receipt is refused in bounded time', () => {
  const notReceipts: unknown[] = [
    null,
    1,
    [],
    {},
    { ...sound, payloadType: 'text/plain' },
    { ...sound, payload: '%' },
  ];
  notReceipts.push({ ...sound, extra: 1 }, { ...sound, payload: Buffer.from('{').toString('base64') });
  notReceipts.push(
    { ...sound, payload: `${sound.payload.slice(0, -1)}\n` },
    { ...sound, payload: 'A'.repeat(100_000) },
  );
  for (const value of notReceipts)
    assert.equal(
      codeOf(() => verifyReceipt(value)),
      'RECEIPT_MALFORMED',
    );
  assert.equal(
    codeOf(() => parseReceipt('not json')),
    'RECEIPT_MALFORMED',
  );
  assert.equal(
    codeOf(() => parseReceipt('['.repeat(10_000_000))),
    'RECEIPT_MALFORMED',
  );
  const extended = signed((body) => Object.assign(body, { more: true }));
  assert.equal(
    codeOf(() => verifyReceipt(extended)),
    'RECEIPT_MALFORMED',
  );
  assert.notEqual(receiptOf('a').payload, receiptOf('b').payload);
});

test('a worker makes its key once, for its owner only, and refuses a file that is none', (t) => {
  const path = join(scratchDir(t), 'worker.key');
  const key = openWorkerKey(path);
  assert.equal(statSync(path).mode & 0o777, 0o600);
  assert.equal(openWorkerKey(path).fingerprint, key.fingerprint);
  assert.match(readFileSync(path, 'utf8'), /^-----BEGIN PRIVATE KEY-----/);
  writeFileSync(path, 'no key');
  assert.equal(
    codeOf(() => openWorkerKey(path)),
    'RECEIPT_BAD_KEY',
  );
  const rsa = generateKeyPairSync('rsa', { modulusLength: 2048 }).privateKey;
  writeFileSync(path, rsa.export({ type: 'pkcs8', format: 'pem' }));
  assert.equal(
    codeOf(() => openWorkerKey(path)),
    'RECEIPT_BAD_KEY',
  );
});
