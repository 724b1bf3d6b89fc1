/**
 * Serial number arithmetic on 32 bits (RFC 1982), which CmdSN, StatSN and their windows use (RFC 7143 section
 * 4.2.2).
 */

/** `a + n` modulo 2^32. */
export function serialAdd(a: number, n: number): number {
  return (a + n) >>> 0;
}

/** How far `b` lies behind `a`: positive when a is later, -2^31 to 2^31 - 1. */
export function serialDistance(a: number, b: number): number {
  return (a - b) | 0;
}
