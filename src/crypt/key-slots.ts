import { randomBytes, timingSafeEqual } from 'node:crypto';
import { GodwitError, isGodwitError } from '../base/errors.ts';
import type { BlockDevice } from '../block/block-device.ts';
import { mergeKey, splitKey } from './anti-forensic.ts';
import { corruptError } from './errors.ts';
import { type Luks2Header, updateHeader } from './header-store.ts';
import { type JsonObject, objectOf } from './json.ts';
import { deriveKey, type Kdf, type KdfLimits } from './kdf.ts';
import { type Area, CIPHER, type KeySlot, type Luks2Metadata, MAX_SLOTS, MAX_STRIPES } from './metadata.ts';
import { Secret } from './secret.ts';
import { createXts } from './xts.ts';

/** What a new key slot costs to open. */
export type KdfChoice =
  | { type: 'argon2id'; passes: number; memoryKib: number; lanes: number }
  | { type: 'pbkdf2'; iterations: number };

/** The second recommended option of RFC 9106, section 4: some 0.1 s, and it opens on small hosts too. */
export const DEFAULT_KDF: KdfChoice = { type: 'argon2id', passes: 3, memoryKib: 64 * 1024, lanes: 4 };

const SALT_BYTES = 32;
/**
 * Areas of key slots are encrypted in sectors of 512 bytes, the first one with tweak 0 (specification 1.1,
 * section 3.1).
 */
const AREA_SECTOR_BYTES = 512;
const AREA_ALIGNMENT_BYTES = 4096;

export type Unlocked = { slot: number; volumeKey: Secret };

/**
 * The volume key, by the first slot that the passphrase opens: preferred slots first, ignored ones only when
 * named. The key is the caller's to dispose of. Rejects with `CRYPT_WRONG_KEY`, `CRYPT_KDF_LIMIT` (no slot
 * opened and one was not tried, because it asks for too much), and what the device rejects with.
 */
export async function unlock(
  device: BlockDevice,
  header: Luks2Header,
  passphrase: Secret,
  limits: KdfLimits,
  onlySlot?: number,
): Promise<Unlocked> {
  const { slots, digest } = header.metadata;
  const candidates = digest.slots
    .flatMap((id) => {
      const slot = slots.get(id);
      const wanted = onlySlot === undefined ? slot !== undefined && slot.priority > 0 : id === onlySlot;
      return slot && wanted ? [{ id, slot }] : [];
    })
    .sort((a, b) => b.slot.priority - a.slot.priority || a.id - b.id);
  let skipped: GodwitError | null = null;
  for (const { id, slot } of candidates) {
    try {
      using candidate = await openSlot(device, slot, passphrase, limits);
      if (await isVolumeKey(header.metadata, candidate, limits))
        return { slot: id, volumeKey: candidate.clone() };
    } catch (error) {
      // One slot of another host's making must not keep the others from being tried.
      if (!isGodwitError(error, 'CRYPT_KDF_LIMIT') && !isGodwitError(error, 'CRYPT_KDF_FAILED')) throw error;
      skipped ??= error;
    }
  }
  throw skipped ?? wrongKeyError(header, candidates.length);
}

/** Whether the key is that of the segment. */
async function isVolumeKey(metadata: Luks2Metadata, volumeKey: Secret, limits: KdfLimits): Promise<boolean> {
  const { salt, hash, iterations, digest } = metadata.digest;
  using found = await deriveKey(
    { type: 'pbkdf2', salt, hash, iterations },
    volumeKey.bytes,
    digest.length,
    limits,
  );
  return timingSafeEqual(found.bytes, digest);
}

/**
 * Adds a slot for another passphrase, in the lowest free number or the one that is named. The key material is
 * durable before the header names it. Rejects with `CRYPT_NO_SLOT`, `CRYPT_KDF_LIMIT` (this host could not
 * open it itself), `CRYPT_WRONG_KEY` for a key that is not the volume's.
 */
export async function addKey(
  device: BlockDevice,
  header: Luks2Header,
  volumeKey: Secret,
  passphrase: Secret,
  limits: KdfLimits,
  choice: KdfChoice = DEFAULT_KDF,
  wantedSlot?: number,
): Promise<{ header: Luks2Header; slot: number }> {
  const { metadata, json, binary } = header;
  if (!(await isVolumeKey(metadata, volumeKey, limits))) throw wrongKeyError(header, 0);
  const slots = objectOf(json.keyslots, 'keyslots');
  const free = Array.from({ length: MAX_SLOTS }, (_, id) => id).filter(
    (id) => !Object.hasOwn(slots, `${id}`),
  );
  const slot = wantedSlot ?? free[0];
  const area = freeArea(metadata, binary.headerBytes, volumeKey.lengthBytes * MAX_STRIPES);
  if (slot === undefined || !free.includes(slot) || area === null) throw noSlotError(metadata);

  const salt = randomBytes(SALT_BYTES);
  const kdf: Kdf = choice.type === 'pbkdf2' ? { ...choice, hash: 'sha256', salt } : { ...choice, salt };
  using areaKey = await deriveKey(kdf, passphrase.bytes, 64, limits);
  await writeArea(device, area, areaKey, splitKey(volumeKey.bytes, MAX_STRIPES, 'sha256'));
  const added = editableCopy(json);
  objectOf(added.keyslots, 'keyslots')[`${slot}`] = slotJson(volumeKey.lengthBytes, area, kdf);
  digestSlots(added, metadata.digest.id).push(`${slot}`);
  return { header: await updateHeader(device, header, added), slot };
}

/**
 * Removes a slot. Its key material is overwritten, durably, before the header forgets it: a crash in between
 * leaves a slot that nothing opens. Rejects with `CRYPT_NO_SLOT` for one that is not there, and
 * `CRYPT_LAST_SLOT` for the last one that opens the volume, unless `lastToo`.
 */
export async function removeKey(
  device: BlockDevice,
  header: Luks2Header,
  slot: number,
  options: { lastToo?: boolean } = {},
): Promise<Luks2Header> {
  const { metadata, json } = header;
  const found = metadata.slots.get(slot) ?? metadata.unusable.get(slot);
  if (found === undefined) throw noSlotError(metadata);
  const others = metadata.digest.slots.filter((id) => id !== slot && metadata.slots.has(id));
  if (others.length === 0 && metadata.slots.has(slot) && options.lastToo !== true) {
    throw new GodwitError('CRYPT_LAST_SLOT', `slot ${slot} is the last one that opens the volume`, {
      values: { slot },
      retry: 'never',
      nextAction: 'Add another key first.',
    });
  }
  const { offsetBytes, lengthBytes } = found.area;
  // Random bytes, not zeros: a layer below could turn zeros into a hole and keep the old sectors.
  await device.write(offsetBytes, randomBytes(lengthBytes));
  await device.flush();
  const removed = editableCopy(json);
  delete objectOf(removed.keyslots, 'keyslots')[`${slot}`];
  for (const digest of Object.values(objectOf(removed.digests, 'digests'))) {
    const { keyslots } = objectOf(digest, 'digest') as { keyslots: string[] };
    const at = keyslots.indexOf(`${slot}`);
    if (at >= 0) keyslots.splice(at, 1);
  }
  return updateHeader(device, header, removed);
}

/**
 * Another passphrase in the place of one: a slot for the new one is added, then that of the old one removed.
 * After a crash in between both open the volume; doing it again ends it. Rejects as `unlock`, `addKey` and
 * `removeKey` do.
 */
export async function changeKey(
  device: BlockDevice,
  header: Luks2Header,
  oldPassphrase: Secret,
  newPassphrase: Secret,
  limits: KdfLimits,
  choice: KdfChoice = DEFAULT_KDF,
): Promise<{ header: Luks2Header; slot: number }> {
  const { slot: oldSlot, volumeKey } = await unlock(device, header, oldPassphrase, limits);
  using key = volumeKey;
  const added = await addKey(device, header, key, newPassphrase, limits, choice);
  return { header: await removeKey(device, added.header, oldSlot), slot: added.slot };
}

async function openSlot(
  device: BlockDevice,
  slot: KeySlot,
  passphrase: Secret,
  limits: KdfLimits,
): Promise<Secret> {
  const { area, keyBytes, antiForensic } = slot;
  if (area.offsetBytes + area.lengthBytes > device.lengthBytes)
    throw corruptError('keyslots', 'the device ends before an area does');
  using areaKey = await deriveKey(slot.kdf, passphrase.bytes, area.keyBytes, limits);
  // Areas are multiples of 4096 bytes; the split key in them need not fill the last block.
  const blockBytes = roundUp(keyBytes * antiForensic.stripes, AREA_ALIGNMENT_BYTES);
  const split = Buffer.allocUnsafeSlow(blockBytes);
  await device.read(area.offsetBytes, split);
  const xts = createXts(areaKey.bytes, AREA_SECTOR_BYTES);
  try {
    xts.decrypt(split, split, 0);
    const used = split.subarray(0, keyBytes * antiForensic.stripes);
    return Secret.take(mergeKey(used, keyBytes, antiForensic.stripes, antiForensic.hash));
  } finally {
    xts.dispose();
    split.fill(0);
  }
}

/** Overwrites `split`. */
async function writeArea(device: BlockDevice, area: Area, areaKey: Secret, split: Buffer): Promise<void> {
  const bytes = randomBytes(area.lengthBytes);
  const usedBytes = roundUp(split.length, AREA_SECTOR_BYTES);
  bytes.fill(0, split.length, usedBytes);
  split.copy(bytes);
  split.fill(0);
  const xts = createXts(areaKey.bytes, AREA_SECTOR_BYTES);
  try {
    const used = bytes.subarray(0, usedBytes);
    xts.encrypt(used, used, 0);
  } finally {
    xts.dispose();
  }
  await device.write(area.offsetBytes, bytes);
  await device.flush();
}

/** The first gap between the areas that is long enough. */
function freeArea(metadata: Luks2Metadata, headerBytes: number, neededBytes: number): Area | null {
  const lengthBytes = roundUp(neededBytes, AREA_ALIGNMENT_BYTES);
  const named = [...metadata.slots.values(), ...metadata.unusable.values()].map((slot) => slot.area);
  const taken = [...named, ...metadata.foreignAreas];
  let offsetBytes = 2 * headerBytes;
  for (const area of taken.sort((a, b) => a.offsetBytes - b.offsetBytes)) {
    if (area.offsetBytes - offsetBytes >= lengthBytes) break;
    offsetBytes = area.offsetBytes + area.lengthBytes;
  }
  const endBytes = 2 * headerBytes + metadata.slotsAreaBytes;
  return endBytes - offsetBytes >= lengthBytes ? { offsetBytes, lengthBytes } : null;
}

/** Specification 1.1, section 3.1. */
function slotJson(keyBytes: number, area: Area, kdf: Kdf): JsonObject {
  const salt = kdf.salt.toString('base64');
  return {
    type: 'luks2',
    key_size: keyBytes,
    af: { type: 'luks1', stripes: MAX_STRIPES, hash: 'sha256' },
    area: {
      type: 'raw',
      offset: `${area.offsetBytes}`,
      size: `${area.lengthBytes}`,
      encryption: CIPHER,
      key_size: 64,
    },
    kdf:
      kdf.type === 'pbkdf2'
        ? { type: kdf.type, hash: kdf.hash, iterations: kdf.iterations, salt }
        : { type: kdf.type, time: kdf.passes, memory: kdf.memoryKib, cpus: kdf.lanes, salt },
  };
}

function digestSlots(json: JsonObject, id: number): string[] {
  const digest = objectOf(objectOf(json.digests, 'digests')[`${id}`], 'digest');
  return digest.keyslots as string[];
}

/** A deep copy of the parts that change; the rest (tokens among it) is shared and stays as it is. */
function editableCopy(json: JsonObject): JsonObject {
  const digests = Object.entries(objectOf(json.digests, 'digests')).map(([id, value]) => {
    const digest = objectOf(value, 'digest');
    return [id, { ...digest, keyslots: [...(digest.keyslots as string[])] }];
  });
  return {
    ...json,
    keyslots: { ...objectOf(json.keyslots, 'keyslots') },
    digests: Object.fromEntries(digests),
  };
}

function roundUp(bytes: number, unitBytes: number): number {
  return Math.ceil(bytes / unitBytes) * unitBytes;
}

function wrongKeyError(header: Luks2Header, triedSlots: number): GodwitError {
  const { digest, unusable } = header.metadata;
  const untried = digest.slots.flatMap((id) => {
    const error = unusable.get(id)?.error;
    return error ? [`slot ${id} could not be tried: ${error.message}`] : [];
  });
  const message = ['the key does not open this volume', ...untried].join('; ');
  return new GodwitError('CRYPT_WRONG_KEY', message, {
    values: { uuid: header.binary.uuid, triedSlots },
    retry: 'never',
    nextAction:
      'Look whether the key provider gives the key of this volume; a file ends with a newline unless it was made without one.',
  });
}

function noSlotError(metadata: Luks2Metadata): GodwitError {
  return new GodwitError('CRYPT_NO_SLOT', 'there is no such key slot, or no room for another one', {
    values: { slots: metadata.slots.size, slotsAreaBytes: metadata.slotsAreaBytes },
    retry: 'never',
    nextAction: 'Look at the slots (`cryptsetup luksDump`); remove one that nobody needs.',
  });
}
