import { corruptError } from './errors.ts';

/**
 * The JSON of a header, as it is: what is not understood (tokens, fields of later versions) stays in it and
 * is written back.
 */
export type JsonObject = { [key: string]: unknown };

/** cryptsetup nests four deep; tokens may go further. */
const MAX_DEPTH = 32;

/**
 * Reads JSON of a disk. The depth is looked at first, since recursion over a hostile one would exhaust the
 * stack; numbers that JavaScript would round are kept as they are written. Throws `CRYPT_HEADER_CORRUPT`.
 */
export function parseJson(text: string): JsonObject {
  if (depthOf(text) > MAX_DEPTH) throw corruptError('JSON', `nested more than ${MAX_DEPTH} deep`);
  let value: unknown;
  try {
    value = JSON.parse(text, (_key: string, item: unknown, context?: { source?: string }) =>
      typeof item === 'number' && !Number.isSafeInteger(item) && context?.source !== undefined
        ? rawJson(context.source)
        : item,
    );
  } catch {
    throw corruptError('JSON', 'it does not parse');
  }
  return objectOf(value, 'JSON');
}

export function printJson(json: JsonObject): Buffer {
  return Buffer.from(JSON.stringify(json));
}

/** JSON.rawJSON (ECMAScript proposal "JSON.parse source text access"; in V8, not in the type library). */
const { rawJSON: rawJson } = JSON as typeof JSON & { rawJSON: (text: string) => object };

function depthOf(text: string): number {
  let depth = 0;
  let deepest = 0;
  let inString = false;
  for (let at = 0; at < text.length; at++) {
    const char = text.charCodeAt(at);
    if (inString) {
      if (char === 0x5c) at++;
      else if (char === 0x22) inString = false;
    } else if (char === 0x22) inString = true;
    else if (char === 0x7b || char === 0x5b) deepest = Math.max(deepest, ++depth);
    else if (char === 0x7d || char === 0x5d) depth--;
  }
  return deepest;
}

export function objectOf(value: unknown, where: string): JsonObject {
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw corruptError(where, 'not an object');
  return value as JsonObject;
}

export function stringOf(value: unknown, where: string): string {
  if (typeof value !== 'string') throw corruptError(where, 'not a text');
  return value;
}

/** A number in [min, max]. */
export function integerOf(value: unknown, where: string, min: number, max: number): number {
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max)
    throw corruptError(where, `not a whole number from ${min} to ${max}`);
  return value;
}

/**
 * LUKS2 writes 64-bit numbers as decimal strings (specification, section 3). Above 2^53 nothing fits any
 * device.
 */
export function uint64Of(value: unknown, where: string): number {
  const number = typeof value === 'string' && /^[0-9]{1,20}$/.test(value) ? Number(value) : Number.NaN;
  if (!Number.isSafeInteger(number)) throw corruptError(where, 'not a number below 2^53 in a string');
  return number;
}

/** Base64 of 1 to `maxBytes` bytes. */
export function bytesOf(value: unknown, where: string, maxBytes: number): Buffer {
  const encoded = stringOf(value, where);
  // Buffer.from skips what is not base64; comparing lengths afterwards would accept some of it.
  if (encoded.length > maxBytes * 2 || !/^[A-Za-z0-9+/]+={0,2}$/.test(encoded))
    throw corruptError(where, 'not base64');
  const bytes = Buffer.from(encoded, 'base64');
  if (bytes.length === 0 || bytes.length > maxBytes) throw corruptError(where, `${bytes.length} bytes`);
  return bytes;
}

export function arrayOf(value: unknown, where: string): unknown[] {
  if (!Array.isArray(value)) throw corruptError(where, 'not a list');
  return value;
}

/** Members of an object whose names are numbers (slots, digests…), in the order of the numbers. */
export function numberedOf(value: unknown, where: string, limit: number): [id: number, value: unknown][] {
  const entries = Object.entries(objectOf(value, where)).map(([key, item]): [number, unknown] => {
    if (!/^(0|[1-9][0-9]?)$/.test(key) || Number(key) >= limit)
      throw corruptError(where, `the name of a member is not a number below ${limit}`);
    return [Number(key), item];
  });
  return entries.sort(([a], [b]) => a - b);
}
