import { GodwitError } from '../base/errors.ts';

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;

const FACTORS: Readonly<Record<string, number>> = {
  '': 1,
  b: 1,
  k: 2 ** 10,
  kib: 2 ** 10,
  m: 2 ** 20,
  mib: 2 ** 20,
  g: 2 ** 30,
  gib: 2 ** 30,
  t: 2 ** 40,
  tib: 2 ** 40,
  kb: 1e3,
  mb: 1e6,
  gb: 1e9,
  tb: 1e12,
};

/**
 * Bytes of `10GiB`, `1.5g`, `500MB` or `4096`. IEC units and their first letters are powers of 1024, SI units
 * are powers of 1000. Throws `CLI_INVALID_SIZE`.
 */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([a-z]*)$/i.exec(text.trim());
  const factor = match && FACTORS[match[2]!.toLowerCase()];
  const bytes =
    match && factor !== undefined && factor !== null ? Math.round(Number(match[1]) * factor) : NaN;
  if (Number.isSafeInteger(bytes)) return bytes;
  throw new GodwitError('CLI_INVALID_SIZE', `not a size: ${text}`, {
    values: { text },
    nextAction: 'Write it as 10GiB, 500MiB or a number of bytes.',
  });
}

/** Three significant digits in IEC units: `5 B`, `1.5 MiB`, `100 GiB`. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let unit = 0;
  // From 999.5 on the rounded value would have four digits.
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : value >= 9.995 ? 1 : 2;
  const text = value.toFixed(digits);
  return `${digits > 0 ? text.replace(/\.?0+$/, '') : text} ${UNITS[unit]}`;
}

const DURATIONS: Readonly<Record<string, number>> = { ms: 1, s: 1e3, m: 60e3, h: 3600e3, d: 86400e3 };

/**
 * Milliseconds of `500ms`, `10s`, `1.5m`, `2h` or `7d`; a bare number is seconds. Throws
 * `CLI_INVALID_DURATION`.
 */
export function parseDuration(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?$/.exec(text.trim());
  if (match) return Math.round(Number(match[1]) * DURATIONS[match[2] ?? 's']!);
  throw new GodwitError('CLI_INVALID_DURATION', `not a duration: ${text}`, {
    values: { text },
    nextAction: 'Write it as 500ms, 10s, 5m or 2h.',
  });
}

/** `412 ms`, `8.3 s`, `4 m 05 s`, `3 h 20 m`, `2 d 3 h`. */
export function formatDuration(durationMs: number): string {
  if (durationMs < 999.5) return `${Math.round(durationMs)} ms`;
  if (durationMs < 59_950)
    return `${(durationMs / 1000).toFixed(durationMs < 9_950 ? 1 : 0).replace(/\.0$/, '')} s`;
  const seconds = Math.round(durationMs / 1000);
  const pad = (value: number) => String(value).padStart(2, '0');
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${pad(seconds % 60)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h ${pad(minutes % 60)} m`;
  const hours = Math.round(minutes / 60);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** First digits of a root or a fingerprint: enough to compare by eye. */
export function shortDigest(digest: string): string {
  return digest.slice(0, 16);
}
