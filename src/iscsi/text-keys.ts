import { protocolError } from './errors.ts';

/**
 * Text keys (RFC 7143 section 6.1): `key=value` pairs, each ended by a NUL. Order and repetition are kept:
 * SendTargets answers with the same key many times, a negotiation must not.
 */
export type TextPair = readonly [key: string, value: string];

/** RFC 7143 section 6.1: a key has at most 63 bytes; large binary values (CHAP_C) may reach 8192. */
const KEY_BYTES_MAX = 63;
const VALUE_BYTES_MAX = 8192;
/** More pairs than all keys there are, several times over. */
const PAIRS_MAX = 256;

/** Throws `ISCSI_PROTOCOL` on anything that is not a list of pairs. */
export function parseTextKeys(data: Uint8Array): TextPair[] {
  const text = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('utf8');
  const pairs: TextPair[] = [];
  let start = 0;
  while (start < text.length) {
    // The last NUL may be missing; some initiators pad with several.
    let end = text.indexOf('\0', start);
    if (end < 0) end = text.length;
    if (end > start) {
      const equals = text.indexOf('=', start);
      if (equals < 0 || equals > end) throw protocolError('text key without a value');
      const key = text.slice(start, equals);
      const value = text.slice(equals + 1, end);
      if (key.length === 0 || key.length > KEY_BYTES_MAX || !/^[A-Z][A-Za-z0-9.\-+@_#]*$/.test(key)) {
        throw protocolError('text key has a bad name', { keyBytes: key.length });
      }
      if (value.length > VALUE_BYTES_MAX) throw protocolError('text value is too long', { key });
      if (pairs.length === PAIRS_MAX) throw protocolError('too many text keys');
      pairs.push([key, value]);
    }
    start = end + 1;
  }
  return pairs;
}

/**
 * As `parseTextKeys`, for a negotiation: a key that comes twice is a protocol error (RFC 7143 section 6.2).
 */
export function parseUniqueTextKeys(data: Uint8Array): Map<string, string> {
  const keys = new Map<string, string>();
  for (const [key, value] of parseTextKeys(data)) {
    if (keys.has(key)) throw protocolError('text key came twice', { key });
    keys.set(key, value);
  }
  return keys;
}

export function formatTextKeys(pairs: Iterable<TextPair>): Buffer {
  let text = '';
  for (const [key, value] of pairs) text += `${key}=${value}\0`;
  return Buffer.from(text, 'utf8');
}

/** A numerical value (decimal or 0x hexadecimal, RFC 7143 section 6.1) inside a range, else null. */
export function parseNumber(value: string, low: number, high: number): number | null {
  if (!/^(0|[1-9][0-9]{0,9}|0[xX][0-9a-fA-F]{1,8})$/.test(value)) return null;
  const number = Number(value);
  return number >= low && number <= high ? number : null;
}

/** A binary value (RFC 7143 section 6.1: 0x hexadecimal or 0b base64), else null. */
export function parseBinary(value: string): Buffer | null {
  const body = value.slice(2);
  if (/^0[xX]$/.test(value.slice(0, 2)) && /^([0-9a-fA-F]{2})+$/.test(body)) return Buffer.from(body, 'hex');
  if (/^0[bB]$/.test(value.slice(0, 2)) && /^[A-Za-z0-9+/]+={0,2}$/.test(body))
    return Buffer.from(body, 'base64');
  return null;
}

export function formatBinary(bytes: Uint8Array): string {
  return `0x${Buffer.from(bytes).toString('hex')}`;
}
