import { type GodwitError, isGodwitError } from '../base/errors.ts';
import { BINARY_HEADER_BYTES } from './binary-header.ts';
import { corruptError, unsupportedError } from './errors.ts';
import {
  arrayOf,
  bytesOf,
  integerOf,
  type JsonObject,
  numberedOf,
  objectOf,
  stringOf,
  uint64Of,
} from './json.ts';
import type { Kdf } from './kdf.ts';
import { DIGEST_BYTES } from './kdf.ts';

/**
 * The metadata of LUKS2 (specification 1.1, section 3): what the JSON area says, checked. One object of each:
 *
 *     keyslots  "0".. "31"  where a copy of the volume key lies, encrypted under a passphrase, and how to get at it
 *     digests   "0"..       how to tell that a key is the right one, and for which slots and segments
 *     segments  "0"         where the ciphertext of the volume is and how it is encrypted
 *     tokens    "0".. "31"  not looked at, kept
 *     config                sizes; requirements that a program must understand before it touches anything
 */
export type Luks2Metadata = {
  slots: ReadonlyMap<number, KeySlot>;
  /**
   * Slots that are sound, and ask for what is not done here (a hash, a KDF, a cipher of their own): others of
   * the volume open it all the same.
   */
  unusable: ReadonlyMap<number, UnusableSlot>;
  /** Slots of a kind that is not understood; they are left alone, and so is their area. */
  foreignAreas: readonly Area[];
  digest: Digest;
  segment: Segment;
  /** Bytes for the areas of key slots, right behind the two headers. */
  slotsAreaBytes: number;
};

export type UnusableSlot = { area: Area; error: GodwitError };

export type Area = { offsetBytes: number; lengthBytes: number };

export type KeySlot = {
  /** Of the volume key: 32 or 64. */
  keyBytes: number;
  /** 0: only when asked for by number; 1: normal; 2: tried first. */
  priority: 0 | 1 | 2;
  antiForensic: { stripes: number; hash: string };
  area: Area & { keyBytes: number };
  kdf: Kdf;
};

export type Digest = {
  id: number;
  slots: readonly number[];
  hash: string;
  iterations: number;
  salt: Buffer;
  digest: Buffer;
};

export type Segment = {
  offsetBytes: number;
  /** null: to the end of the device. */
  lengthBytes: number | null;
  /** Added to the number of each sector, in units of 512 bytes. */
  tweakOffset: number;
  sectorBytes: number;
};

export const MAX_SLOTS = 32;
export const CIPHER = 'aes-xts-plain64';
/** cryptsetup never uses another number; larger ones are refused to bound the work. */
export const MAX_STRIPES = 4000;
const MAX_TOKENS = 32;
/** LUKS2_MAX_KEYSLOTS_SIZE of cryptsetup. */
const MAX_SLOTS_AREA_BYTES = 128 * 1024 * 1024;
const AREA_ALIGNMENT_BYTES = 4096;
const MAX_SALT_BYTES = 1024;
const PRIORITIES = [0, 1, 2] as const;

/**
 * Throws `CRYPT_HEADER_CORRUPT` for what contradicts the format or itself, and `CRYPT_UNSUPPORTED` for what
 * is sound and not done here: any mandatory requirement (a re-encryption that has begun, something newer),
 * another cipher, integrity, more than one segment. Key slots are judged one by one, as cryptsetup does: one
 * that asks for what is not done here is only not used.
 */
export function parseMetadata(json: JsonObject, headerBytes: number): Luks2Metadata {
  const slotsAreaBytes = parseConfig(objectOf(json.config, 'config'), headerBytes);
  numberedOf(json.tokens, 'tokens', MAX_TOKENS);
  const slots = new Map<number, KeySlot>();
  const unusable = new Map<number, UnusableSlot>();
  const foreignAreas: Area[] = [];
  for (const [id, value] of numberedOf(json.keyslots, 'keyslots', MAX_SLOTS)) {
    const slot = objectOf(value, `keyslot ${id}`);
    if (stringOf(slot.type, `keyslot ${id} type`) === 'luks2') {
      const parsed = slotOrWhyNot(slot, `keyslot ${id}`);
      if ('error' in parsed) unusable.set(id, parsed);
      else slots.set(id, parsed);
    } else if (slot.area !== undefined) foreignAreas.push(parseArea(slot.area, `keyslot ${id} area`));
  }
  const areas = [...slots.values(), ...unusable.values()].map((slot) => slot.area);
  checkAreas([...areas, ...foreignAreas], headerBytes, slotsAreaBytes);
  const segment = parseSegments(json.segments);
  const digest = parseDigests(json.digests, objectOf(json.keyslots, 'keyslots'));
  for (const id of digest.slots) {
    const slot = slots.get(id);
    if (!slot || slot.keyBytes === 32 || slot.keyBytes === 64) continue;
    slots.delete(id);
    unusable.set(id, { area: slot.area, error: unsupportedError('volume key of', `${slot.keyBytes} bytes`) });
  }
  const [first] = digest.slots.flatMap((id) => unusable.get(id) ?? []);
  // Nothing else opens it: what is missing here is what there is to say.
  if (first && !digest.slots.some((id) => slots.has(id))) throw first.error;
  return { slots, unusable, foreignAreas, digest, segment, slotsAreaBytes };
}

function parseConfig(config: JsonObject, headerBytes: number): number {
  if (uint64Of(config.json_size, 'config json_size') !== headerBytes - BINARY_HEADER_BYTES)
    throw corruptError('config json_size', 'it is not that of the binary header');
  if (config.requirements !== undefined) {
    const { mandatory } = objectOf(config.requirements, 'config requirements');
    const names = mandatory === undefined ? [] : arrayOf(mandatory, 'mandatory requirements');
    const first = names[0];
    if (first !== undefined)
      throw unsupportedError('requirement', stringOf(first, 'requirement').slice(0, 64));
  }
  const slotsAreaBytes = uint64Of(config.keyslots_size, 'config keyslots_size');
  if (slotsAreaBytes > MAX_SLOTS_AREA_BYTES || slotsAreaBytes % AREA_ALIGNMENT_BYTES !== 0)
    throw corruptError('config keyslots_size', `${slotsAreaBytes} bytes`);
  return slotsAreaBytes;
}

/** Throws for a slot that is not sound. */
function slotOrWhyNot(slot: JsonObject, where: string): KeySlot | UnusableSlot {
  try {
    return parseSlot(slot, where);
  } catch (error) {
    if (!isGodwitError(error, 'CRYPT_UNSUPPORTED')) throw error;
    return { area: parseArea(slot.area, `${where} area`), error };
  }
}

function parseSlot(slot: JsonObject, where: string): KeySlot {
  const af = objectOf(slot.af, `${where} af`);
  if (stringOf(af.type, `${where} af type`) !== 'luks1') throw corruptError(`${where} af`, 'unknown type');
  const area = objectOf(slot.area, `${where} area`);
  if (stringOf(area.type, `${where} area type`) !== 'raw')
    throw corruptError(`${where} area`, 'unknown type');
  checkCipher(area.encryption, 'cipher of a key slot');
  const keyBytes = integerOf(slot.key_size, `${where} key_size`, 1, 4096);
  const stripes = integerOf(af.stripes, `${where} af stripes`, 2, MAX_STRIPES);
  const { offsetBytes, lengthBytes } = parseArea(area, `${where} area`);
  if (keyBytes * stripes > lengthBytes) throw corruptError(`${where} area`, 'too small for the key');
  return {
    keyBytes,
    priority:
      slot.priority === undefined ? 1 : PRIORITIES[integerOf(slot.priority, `${where} priority`, 0, 2)]!,
    antiForensic: { stripes, hash: hashOf(af.hash, `${where} af hash`) },
    area: { offsetBytes, lengthBytes, keyBytes: xtsKeyBytesOf(area.key_size, `${where} area key_size`) },
    kdf: parseKdf(objectOf(slot.kdf, `${where} kdf`), `${where} kdf`),
  };
}

function parseKdf(kdf: JsonObject, where: string): Kdf {
  const salt = bytesOf(kdf.salt, `${where} salt`, MAX_SALT_BYTES);
  const type = stringOf(kdf.type, `${where} type`);
  if (type === 'pbkdf2') {
    const iterations = integerOf(kdf.iterations, `${where} iterations`, 1, 2 ** 32 - 1);
    return { type, salt, hash: hashOf(kdf.hash, `${where} hash`), iterations };
  }
  if (type !== 'argon2id' && type !== 'argon2i') throw unsupportedError('KDF', type.slice(0, 32));
  return {
    type,
    salt,
    passes: integerOf(kdf.time, `${where} time`, 1, 2 ** 32 - 1),
    memoryKib: integerOf(kdf.memory, `${where} memory`, 1, 2 ** 32 - 1),
    lanes: integerOf(kdf.cpus, `${where} cpus`, 1, 2 ** 24 - 1),
  };
}

function parseArea(value: unknown, where: string): Area {
  const area = objectOf(value, where);
  return {
    offsetBytes: uint64Of(area.offset, `${where} offset`),
    lengthBytes: uint64Of(area.size, `${where} size`),
  };
}

/**
 * Inside the space for areas, aligned, and apart from each other: a slot that is wiped must not take another
 * with it.
 */
function checkAreas(areas: readonly Area[], headerBytes: number, slotsAreaBytes: number): void {
  let endBytes = 2 * headerBytes;
  for (const area of [...areas].sort((a, b) => a.offsetBytes - b.offsetBytes)) {
    const aligned =
      area.offsetBytes % AREA_ALIGNMENT_BYTES === 0 && area.lengthBytes % AREA_ALIGNMENT_BYTES === 0;
    if (!aligned || area.lengthBytes === 0 || area.offsetBytes < endBytes)
      throw corruptError('keyslots', 'areas that overlap, are empty or not aligned');
    endBytes = area.offsetBytes + area.lengthBytes;
  }
  if (endBytes > 2 * headerBytes + slotsAreaBytes)
    throw corruptError('keyslots', 'an area outside the space for areas');
}

function parseSegments(value: unknown): Segment {
  const segments = Object.entries(objectOf(value, 'segments'));
  const [first] = segments;
  if (first === undefined) throw corruptError('segments', 'there is none');
  if (segments.length !== 1 || first[0] !== '0')
    throw unsupportedError('number of segments', `${segments.length}`);
  const segment = objectOf(first[1], 'segment 0');
  const type = stringOf(segment.type, 'segment 0 type');
  if (type !== 'crypt') throw unsupportedError('segment', type.slice(0, 32));
  if (segment.integrity !== undefined) throw unsupportedError('integrity', 'of segment 0');
  if (segment.flags !== undefined && arrayOf(segment.flags, 'segment 0 flags').length > 0)
    throw unsupportedError('flags', 'of segment 0');
  checkCipher(segment.encryption, 'cipher');
  const sectorBytes = integerOf(segment.sector_size, 'segment 0 sector_size', 512, 4096);
  if ((sectorBytes & (sectorBytes - 1)) !== 0) throw corruptError('segment 0 sector_size', `${sectorBytes}`);
  const offsetBytes = uint64Of(segment.offset, 'segment 0 offset');
  if (offsetBytes % 512 !== 0) throw corruptError('segment 0 offset', 'not a multiple of 512');
  const lengthBytes = segment.size === 'dynamic' ? null : uint64Of(segment.size, 'segment 0 size');
  if (lengthBytes !== null && (lengthBytes === 0 || lengthBytes % sectorBytes !== 0))
    throw corruptError('segment 0 size', 'not whole sectors');
  return {
    offsetBytes,
    lengthBytes,
    sectorBytes,
    tweakOffset: uint64Of(segment.iv_tweak, 'segment 0 iv_tweak'),
  };
}

function parseDigests(value: unknown, slots: JsonObject): Digest {
  const digests = numberedOf(value, 'digests', MAX_SLOTS).map(([id, item]) => {
    const digest = objectOf(item, `digest ${id}`);
    const names = (list: unknown) =>
      arrayOf(list, `digest ${id}`).map((name) => stringOf(name, `digest ${id}`));
    const slotNames = names(digest.keyslots);
    if (new Set(slotNames).size !== slotNames.length)
      throw corruptError(`digest ${id}`, 'it names a key slot twice');
    if (slotNames.some((name) => !Object.hasOwn(slots, name)))
      throw corruptError(`digest ${id}`, 'it names a key slot that is not there');
    return { id, digest, slotNames, segments: names(digest.segments) };
  });
  const [mine, other] = digests.filter(({ segments }) => segments.includes('0'));
  if (mine === undefined) throw corruptError('digests', 'none is of segment 0');
  if (other !== undefined) throw corruptError('digests', 'two are of segment 0');
  const { id, digest, slotNames } = mine;
  const type = stringOf(digest.type, `digest ${id} type`);
  if (type !== 'pbkdf2') throw unsupportedError('digest', type.slice(0, 32));
  return {
    id,
    slots: slotNames.map(Number),
    hash: hashOf(digest.hash, `digest ${id} hash`),
    iterations: integerOf(digest.iterations, `digest ${id} iterations`, 1, 2 ** 32 - 1),
    salt: bytesOf(digest.salt, `digest ${id} salt`, MAX_SALT_BYTES),
    digest: bytesOf(digest.digest, `digest ${id} digest`, MAX_SALT_BYTES),
  };
}

function checkCipher(value: unknown, what: string): void {
  const cipher = stringOf(value, what);
  if (cipher !== CIPHER) throw unsupportedError(what, cipher.slice(0, 64));
}

/** AES-XTS takes two keys of 128 or of 256 bits. */
function xtsKeyBytesOf(value: unknown, where: string): number {
  const keyBytes = integerOf(value, where, 1, 4096);
  if (keyBytes !== 32 && keyBytes !== 64) throw corruptError(where, 'not 32 or 64');
  return keyBytes;
}

function hashOf(value: unknown, where: string): string {
  const hash = stringOf(value, where);
  if (!DIGEST_BYTES.has(hash)) throw unsupportedError('hash', hash.slice(0, 32));
  return hash;
}
